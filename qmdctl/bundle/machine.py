"""Parts about the machine: system, memory, GPU, disk."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from pathlib import Path

from qmdctl.bundle.parts import Part, command, file


def machine_parts(folder: Path) -> Iterator[Part]:
    """What is read of the machine that this runs on. `folder`: the project's, whose disk is looked at."""
    yield Part("machine/system.txt", "Python's platform module, sys", _system)
    yield file("machine/os-release.txt", Path("/etc/os-release"))
    if platform.system() == "Darwin":
        yield command("machine/memory.txt", ["vm_stat"])
    else:
        yield file("machine/meminfo.txt", Path("/proc/meminfo"))
        yield command("machine/memory-pressure.txt", ["cat", "/proc/pressure/memory", "/proc/loadavg"])
    yield command("machine/processes-by-memory.txt", ["sh", "-c", "ps -eo pid,rss,etime,comm | sort -k2 -n -r | head -25"])
    yield command("machine/nvidia-smi.txt", ["nvidia-smi"])
    yield command("machine/nvidia-smi-q.txt", ["nvidia-smi", "-q"])
    yield command("machine/disk.txt", ["df", "-h"])
    yield command("machine/disk-of-project.txt", ["df", "-hi", str(folder)])


def _system() -> bytes:
    from qmdctl import __version__

    lines = {
        "qmdctl": __version__,
        "python": sys.version.replace("\n", " "),
        "system": platform.system(),
        "kernel": f"{platform.release()} {platform.version()}",
        "machine": platform.machine(),
        "processor": platform.processor(),
        "host name": platform.node(),
        "WSL": "microsoft" in platform.release().lower(),
    }
    return "".join(f"{name}: {value}\n" for name, value in lines.items()).encode()
