"""FAKE machines: no GPU is here. The rows of nvidia-smi are as its documentation and the threads cited write them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from qmdctl.hardware import Hardware, find_hardware
from qmdctl.process import Completed

GIB = 1 << 30
SPARK = "0, GPU-5c1b0c9a-0000-0000-0000-000000000001, NVIDIA GB10, [N/A], [N/A], 580.142, 12.1"


def card(name: str, mib: int, *, index: int = 0, free: int | None = None, driver: str = "580.95.05", capability: str = "8.9") -> str:
    """A row of nvidia-smi for a card of its own memory."""
    free = mib - 300 if free is None else free
    return f"{index}, GPU-{index:08x}-0000-0000-0000-000000000000, {name}, {mib}, {free}, {driver}, {capability}"


def smi(*rows: str, status: int = 0, said: str = "") -> Callable[[list[str]], Completed]:
    """A runner that answers as nvidia-smi."""

    def run(command: list[str]) -> Completed:
        return Completed(tuple(command), status, "\n".join(rows) + "\n" if rows else said, "")

    return run


def proc_folder(folder: Path, total_gib: float, available_gib: float, version: str = "Linux version 6.8.0") -> Path:
    """A /proc with meminfo and version."""
    folder.mkdir(parents=True, exist_ok=True)
    kib = 1 << 20
    text = f"MemTotal:       {int(total_gib * kib)} kB\nMemFree: 1 kB\nMemAvailable:   {int(available_gib * kib)} kB\n"
    (folder / "meminfo").write_text(text)
    (folder / "version").write_text(version + "\n")
    return folder


def machine(folder: Path, *rows: str, total_gib: float = 64, available_gib: float = 60, version: str = "Linux version 6.8.0") -> Hardware:
    """A Linux machine with these GPUs."""
    runner = smi(*rows) if rows else smi(status=9, said="NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.")
    return find_hardware(proc_folder(folder / "proc", total_gib, available_gib, version), runner)
