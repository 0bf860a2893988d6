"""Who has the memory that the models are in: a card's, one that processor and GPU share, or that of a machine without a GPU."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["Kind", "KvCache", "MemoryBar", "PartName", "memory_bar"]

Kind = Literal["card", "unified", "machine"]
PartName = Literal["weights", "service", "kv_cache", "vllm", "other", "free"]
PROC = Path("/proc")
KIBIBYTE = 1024


@dataclass(frozen=True)
class KvCache:
    """vLLM's, as it says itself: `size` in bytes where that was set; `utilization`: the part of the device that vLLM may use in all."""

    size: int | None
    utilization: float | None
    used: float | None = None  # part of the cache that holds keys and values, 0 to 1


@dataclass(frozen=True)
class MemoryBar:
    """`parts` sum up to `total` bytes. `kind`: a card's memory, memory that is the machine's and the GPU's, or a machine without a GPU."""

    kind: Kind
    total: int
    parts: dict[PartName, int]


def memory_bar(engine: Mapping[str, int], pids: Iterable[int], kv_cache: KvCache | None = None, proc: Path = PROC) -> MemoryBar | None:
    """`engine`: the last that the engine said (engine/memory.py), empty before it is ready. None where the system does not tell.

    weights: of both models; service: what else the service holds; kv_cache: vLLM's; vllm: its budget, where its cache is not known apart;
    other: everything else that is taken.
    """
    weights = engine.get("weights", 0)
    kind: Kind = "machine"
    if "total" in engine and not engine["unified"]:
        kind, total, free = "card", engine["total"], engine["free"]
        service = engine["reserved"] - weights
    else:
        machine = _fields(proc / "meminfo")
        if "MemTotal" not in machine or "MemAvailable" not in machine:
            return None
        # Not the device's own figure, for which the kernel's file cache counts as taken.
        total, free = machine["MemTotal"], machine["MemAvailable"]
        resident = sum(_fields(proc / str(pid) / "status").get("VmRSS", 0) for pid in pids)
        if "total" in engine:
            kind, service = "unified", resident + engine["reserved"] - weights  # what CUDA takes is no part of a process's size
        else:
            service = resident - weights
    parts: dict[PartName, int] = {}
    left = max(0, total - free)
    for name, size in (("weights", weights), ("service", service)):
        parts[name] = max(0, min(size, left))  # type: ignore[index]
        left -= parts[name]  # type: ignore[index]
    if kv_cache is not None and kind != "machine":
        if kv_cache.size is not None and kv_cache.size <= left:  # more than is taken is on another card
            parts["kv_cache"] = kv_cache.size
            left -= kv_cache.size
        elif kv_cache.size is None and kv_cache.utilization is not None:
            parts["vllm"] = min(left, int(kv_cache.utilization * total))
            left -= parts["vllm"]
    parts["other"], parts["free"] = left, total - sum(parts.values()) - left
    return MemoryBar(kind, total, parts)


def _fields(file: Path) -> dict[str, int]:
    """`Name:  123 kB` lines as bytes; none where the file is not there (another system, a process that ended)."""
    found: dict[str, int] = {}
    try:
        text = file.read_text()
    except OSError:
        return found
    for line in text.splitlines():
        name, _, value = line.partition(":")
        number, _, unit = value.strip().partition(" ")
        if unit == "kB" and number.isdigit():
            found[name] = int(number) * KIBIBYTE
    return found
