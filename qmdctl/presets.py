"""presets.yaml: models and memory figures for each size of machine."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from qmdctl.errors import ConfigurationError
from qmdctl.hardware import Gpu, Hardware
from qmdctl.models.budget import RUNTIME, generate_need, make_budget, plan_from
from qmdctl.models.known import model_config
from qmdctl.models.plan import GB, GIB

# Left to a desktop on the same card: GNOME, or Windows below WSL2, takes about 1,000 MiB of it.
DESKTOP_BYTES = 1_500 << 20
OWN_SIZE = 0.1  # a machine within this share of a preset's memory is the one that the preset was made for

Seconds = dict[str, dict[str, float]]  # service → phase → seconds


@dataclass(frozen=True)
class Preset:
    """`settings` go into .env. The expected times are estimates; presets.yaml says what from."""

    name: str
    title: str
    memory_gib: float
    unified: bool
    bandwidth_of: str
    settings: dict[str, str]
    seconds_per_search: float
    minutes_per_10000_chunks: float
    first_start: Seconds
    warm_start: Seconds

    @property
    def cpu(self) -> bool:
        return self.name == "cpu"


@cache
def load_presets() -> dict[str, Preset]:
    """By name, the largest first."""
    import yaml

    table = yaml.safe_load((Path(__file__).parent / "presets.yaml").read_text("utf-8"))
    return {name: Preset(name=name, **fields) for name, fields in table.items()}


def find_preset(name: str) -> Preset:
    """Raises ConfigurationError, which lists the names."""
    presets = load_presets()
    if name not in presets:
        raise ConfigurationError(f"there is no preset {name!r}", f"--preset takes one of {', '.join(presets)}")
    return presets[name]


def cards(hardware: Hardware) -> list[Gpu]:
    """The GPUs with a memory of their own, the largest first."""
    return sorted((gpu for gpu in hardware.gpus if not gpu.unified), key=lambda gpu: -(gpu.memory_bytes or 0))


def choose_preset(hardware: Hardware) -> Preset:
    """The largest that fits the machine's GPU by the memory budget, of several the largest card, or `cpu`.

    By its size, not by what is free: the stack itself may run on it now.
    """
    size, presets = _size(hardware), load_presets()
    if hardware.unified:
        empty = replace(hardware, available_bytes=size)
    else:
        empty = replace(hardware, gpus=tuple(replace(card, free_bytes=max(size - DESKTOP_BYTES, 0)) for card in cards(hardware)[:1]))
    for preset in presets.values():
        if not preset.cpu and size:
            scaled = scale(preset, hardware)
            if not make_budget(plan_from(scaled.settings, cpu=False), model_config, empty).problems:
                return scaled
    return presets["cpu"]


def scale(preset: Preset, hardware: Hardware) -> Preset:
    """VLLM_GPU_MEMORY_UTILIZATION is a fraction of the device: what vLLM needs is another one on another size."""
    size = _size(hardware)
    if preset.cpu or not size or abs(size / (preset.memory_gib * GIB) - 1) <= OWN_SIZE:
        return preset
    plan = plan_from(preset.settings, cpu=False)
    need = sum(generate_need(plan, model_config(preset.settings["VLLM_MODEL"]))) + RUNTIME["vllm", "gpu"] + (plan.kv_cache_gb or 0) * GB
    utilization = min(max(math.floor(100 * need / size) / 100, 0.01), 1.0)
    return replace(preset, settings={**preset.settings, "VLLM_GPU_MEMORY_UTILIZATION": f"{utilization:.2f}"})


def _size(hardware: Hardware) -> int:
    """Bytes of the memory that the GPU has, of several cards the largest one; 0 where there is none."""
    if hardware.unified:
        return hardware.memory_bytes
    return max((card.memory_bytes or 0 for card in cards(hardware)), default=0)
