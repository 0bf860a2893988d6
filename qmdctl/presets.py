"""presets.yaml: models and memory figures for each size of machine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from qmdctl.errors import ConfigurationError
from qmdctl.hardware import Hardware

GIB = 1 << 30
# A card's driver keeps some of it: an "8 GB" card shows 8,188 MiB, and 24 GB are 24,564.
CARD_SHARE = 0.985
SPARK_BYTES = 40 * 10**9  # from here on the three 4B models in bf16 (24 GB) fit with their caches
FOUR_B_BYTES = 18 * 10**9  # Qwen3-4B in bf16 with 6 GB of KV cache, by the memory budget

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


def choose_preset(hardware: Hardware) -> Preset:
    """The largest that fits the machine's GPU (of several the largest card), or `cpu`."""
    presets = load_presets()
    if not hardware.gpus:
        return presets["cpu"]
    size = hardware.memory_bytes if hardware.unified else max(gpu.memory_bytes or 0 for gpu in hardware.gpus)
    if size >= SPARK_BYTES:
        return _scaled(presets["spark"], hardware, size)
    for name in ("24", "16", "12", "8"):
        if size >= presets[name].memory_gib * CARD_SHARE * GIB:
            return presets[name]
    return presets["cpu"]


def _scaled(preset: Preset, hardware: Hardware, size: int) -> Preset:
    """VLLM_GPU_MEMORY_UTILIZATION is a fraction of the device: what vLLM needs is another one on another size."""
    if hardware.unified and size >= 0.9 * preset.memory_gib * GIB:
        return preset
    settings = {**preset.settings, "VLLM_GPU_MEMORY_UTILIZATION": f"{FOUR_B_BYTES / size:.2f}"}
    return replace(preset, settings=settings)
