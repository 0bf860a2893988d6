"""What `qmdctl init` proposes for a machine: a preset, the values for .env, whether they fit, and what to expect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from qmdctl.catalog.roles import REVISION_OF
from qmdctl.env_file import EnvFile
from qmdctl.errors import QmdError
from qmdctl.hardware import Gpu, Hardware
from qmdctl.models.budget import make_budget, plan_from
from qmdctl.models.known import KNOWN, model_config
from qmdctl.models.plan import Budget
from qmdctl.models.size import weight_bytes
from qmdctl.presets import Preset, cards, choose_preset, find_preset, load_presets, scale
from qmdctl.settings import Settings
from qmdctl.terminal import human_bytes, table

CPU_FILES = "compose.yaml:compose.cpu.yaml"
GPU_FILES = "compose.yaml"
VLLM_URL = "http://vllm:8000"
MODEL_KEYS = tuple(REVISION_OF)
GPU_KEYS = ("EMBED_GPU", "VLLM_GPU")


@dataclass(frozen=True)
class Proposal:
    """`values` go into .env; keys of `cleared` belong to another preset, model or machine and are commented out.

    `budget` is None where it is not known.
    """

    preset: Preset
    cpu: bool
    values: dict[str, str]
    cleared: tuple[str, ...]
    budget: Budget | None
    unknown: str = ""  # why there is no budget

    @property
    def as_in_preset(self) -> bool:
        """Whether the models are the preset's own, so that its expected times hold."""
        return all(self.values.get(key) == value for key, value in self.preset.settings.items() if key in MODEL_KEYS)

    def apply(self, file: EnvFile) -> None:
        """Put the values into a parsed .env (or .env.example)."""
        for key in self.cleared:
            file.unset(key)
        for key, value in self.values.items():
            if file.values.get(key) != value:
                file.set(key, value)

    def payload(self) -> dict[str, Any]:
        budget = self.budget
        return {
            "preset": self.preset.name,
            "cpu": self.cpu,
            "values": self.values,
            "fits": None if budget is None else not budget.problems,
            "memory": [place.sentence() for place in budget.places] if budget else [],
            "problems": [problem.message for problem in budget.problems] if budget else [],
            "expected_seconds_per_search": self.preset.seconds_per_search if self.as_in_preset else None,
            "expected_minutes_per_10000_chunks": self.preset.minutes_per_10000_chunks if self.as_in_preset else None,
        }

    def text(self) -> str:
        """For people."""
        lines = [f"Preset {self.preset.name}: {self.preset.title}"]
        lines.append(table((f"  {key}", value) for key, value in self.values.items()))
        for place in self.budget.places if self.budget else ():
            lines.append(f"Memory. {place.sentence()}")
        for problem in self.budget.problems if self.budget else ():
            lines.append(f"✗ {problem.message}\n  → {problem.fix}")
        if self.unknown:
            lines.append(f"Memory: not known ({self.unknown})")
        if self.as_in_preset:
            lines.append(
                f"Expected, by estimate: {self.preset.seconds_per_search:g} s per search, {self.preset.minutes_per_10000_chunks:g} min to "
                f"embed 10,000 chunks (for {self.preset.bandwidth_of}; not measured by this project)"
            )
        return "\n".join(lines)


def propose(
    hardware: Hardware,
    preset_name: str | None,
    *,
    cpu: bool | None,
    chosen: Mapping[str, str],
    before: Mapping[str, str] = MappingProxyType({}),
    hub_cache: Path | None = None,
) -> Proposal:
    """`cpu`: None decides by the hardware. `chosen`: keys that the user gave, which win. `before`: an .env that is there.

    ConfigurationError for an unknown preset.
    """
    if cpu is None:
        cpu = preset_name == "cpu" or (preset_name is None and not hardware.gpus)
    preset = scale(find_preset(preset_name), hardware) if preset_name else load_presets()["cpu"] if cpu else choose_preset(hardware)
    cpu = cpu or preset.cpu
    values = {
        "COMPOSE_FILE": CPU_FILES if cpu else GPU_FILES,
        "COMPOSE_PROFILES": "generation",
        "GENERATION_URL": VLLM_URL,
        **preset.settings,
    }
    if not cpu:
        values |= _placed(cards(hardware))
    values |= chosen
    profiles = values["COMPOSE_PROFILES"].split(",")
    if "generation" not in profiles:
        values.pop("VLLM_MODEL", None)
        if "tailnet" in profiles:
            values["VLLM_SERVE"] = "vllm-through-embed"
    others = {"VLLM_SERVE", *_preset_keys()}
    others |= stale_revisions(before, values)
    others |= {key for key in GPU_KEYS if hardware.gpus and before.get(key) and hardware.gpu(before[key]) is None}  # another machine's
    cleared = tuple(sorted(others - values.keys()))
    try:
        budget = make_budget(plan_from(values, cpu=cpu), lambda model: model_config(model, hub_cache), hardware)
    except (QmdError, ValueError) as error:
        return Proposal(preset, cpu, values, cleared, None, str(error))
    return Proposal(preset, cpu, values, cleared, budget)


def stale_revisions(before: Mapping[str, str], values: Mapping[str, str]) -> set[str]:
    """The keys of revisions whose model is another one in `values`: the new model has no such commit."""
    return {
        revision
        for model, revision in REVISION_OF.items()
        if before.get(revision) and values.get(model, before.get(model)) != before.get(model)
    }


def cpu_flags(settings: Settings) -> dict[str, str] | None:
    """What --cpu sets over these settings; None where they are for a CPU already.

    The cpu preset in place of memory figures made for a GPU, and of models that are larger than its own; smaller ones, those that
    nobody knows here, and what the environment sets, were chosen and stay.
    """
    if settings.cpu:
        return None
    preset = load_presets()["cpu"].settings
    chosen = {key for key in MODEL_KEYS if not _is_larger(settings[key], preset[key])}
    chosen |= {key for key in _preset_keys() if settings.origin(key) == "environment"}
    values = {key: preset.get(key, "") for key in sorted(_preset_keys() - chosen)}
    return {"COMPOSE_FILE": CPU_FILES, **values, **dict.fromkeys(sorted(stale_revisions(settings, values)), "")}


def _is_larger(model: str, other: str) -> bool:
    return model in KNOWN and weight_bytes(KNOWN[model]) > weight_bytes(KNOWN[other])


def _preset_keys() -> set[str]:
    return {key for preset in load_presets().values() for key in preset.settings}


def _placed(largest_first: list[Gpu]) -> dict[str, str]:
    """Two equal cards take one service each; else both are on the largest, which Docker has to be told where it is not the only one."""
    if not largest_first:
        return {}
    first, second = largest_first[0], largest_first[:2][-1]
    if second.memory_bytes != first.memory_bytes:
        second = first
    elsewhere = len(largest_first) > 1 or first.index != 0
    return {"EMBED_GPU": str(first.index), "VLLM_GPU": str(second.index)} if elsewhere else {}


def describe(hardware: Hardware) -> str:
    """The machine in a line or two."""
    memory = f"{human_bytes(hardware.memory_bytes)} of memory, {human_bytes(hardware.available_bytes)} available"
    lines = [f"{hardware.system} on {hardware.architecture}{' under WSL' if hardware.wsl else ''}, {memory}"]
    for gpu in hardware.gpus:
        size = "shares that memory" if gpu.unified else human_bytes(gpu.memory_bytes or 0)
        capability = ".".join(map(str, gpu.compute_capability)) if gpu.compute_capability else "unknown"
        lines.append(f"GPU {gpu.index}: {gpu.name}, {size}, driver {gpu.driver}, compute capability {capability}")
    if not hardware.gpus:
        lines.append(f"No NVIDIA GPU: {hardware.gpu_error}")
    return "\n".join(lines)


def hardware_payload(hardware: Hardware) -> dict[str, Any]:
    return {
        "system": hardware.system,
        "architecture": hardware.architecture,
        "memory_bytes": hardware.memory_bytes,
        "available_bytes": hardware.available_bytes,
        "unified_memory": hardware.unified,
        "wsl": hardware.wsl,
        "gpus": [{"index": gpu.index, "name": gpu.name, "memory_bytes": gpu.memory_bytes, "driver": gpu.driver} for gpu in hardware.gpus],
        "gpu_error": hardware.gpu_error or None,
    }
