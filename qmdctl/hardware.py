"""What the machine is: its GPUs as `nvidia-smi` lists them, its memory, its processor, and whether it is WSL or a Mac."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from qmdctl.errors import MissingError, QmdError
from qmdctl.process import Completed, run

MIB = 1 << 20
QUERY = ("index", "uuid", "name", "memory.total", "memory.free", "driver_version", "compute_cap")
# GPUs that share the processor's memory: nvidia-smi gives N/A or "[Not Supported]" for their memory (GB10: vLLM#35313).
UNIFIED = re.compile(r"\b(GB10|Spark|Orin|Xavier|Thor|Tegra|Jetson)\b", re.IGNORECASE)
# Docker's names of the architectures that `uname -m` gives.
ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
NVIDIA_SMI_SECONDS = 20.0
WSL_NVIDIA_SMI = "/usr/lib/wsl/lib/nvidia-smi"  # where Windows' driver puts it; not on the PATH of sudo and ssh
GPU_MISSING = "nvidia-smi cannot be run"

Runner = Callable[[list[str]], Completed]


@dataclass(frozen=True)
class Gpu:
    """One row of nvidia-smi. Sizes in bytes, None where the driver does not tell (unified memory)."""

    index: int
    uuid: str
    name: str
    memory_bytes: int | None
    free_bytes: int | None
    driver: str
    compute_capability: tuple[int, int] | None

    @property
    def unified(self) -> bool:
        """Whether its memory is the machine's own."""
        return UNIFIED.search(self.name) is not None or self.memory_bytes is None


@dataclass(frozen=True)
class Hardware:
    """`gpu_error` is why there are none: no nvidia-smi, or what it said. Memory in bytes; `system` as platform.system() says."""

    system: str
    architecture: str  # Docker's word: amd64, arm64
    memory_bytes: int
    available_bytes: int  # MemAvailable: what can be had without swapping; page cache counts as free
    wsl: bool = False
    gpus: tuple[Gpu, ...] = ()
    gpu_error: str = ""
    processor: str = field(default="", compare=False)

    @property
    def unified(self) -> bool:
        return bool(self.gpus) and all(gpu.unified for gpu in self.gpus)

    def gpu(self, name: str) -> Gpu | None:
        """The GPU that EMBED_GPU or VLLM_GPU means: an index or a UUID."""
        return next((gpu for gpu in self.gpus if name in (str(gpu.index), gpu.uuid)), None)


def find_hardware(proc: Path = Path("/proc"), runner: Runner | None = None) -> Hardware:
    """`proc` and `runner` (runs nvidia-smi) are given by tests. Never raises: what cannot be read is 0 or empty."""
    memory = read_meminfo(proc / "meminfo")
    system = platform.system()
    total, available = memory.get("MemTotal", 0), memory.get("MemAvailable", 0)
    if not total and system == "Darwin":
        total = available = _darwin_memory(runner or _run)
    gpus, error = find_gpus(runner or _run)
    return Hardware(
        system=system,
        architecture=ARCHITECTURES.get(platform.machine().lower(), platform.machine()),
        memory_bytes=total,
        available_bytes=available,
        wsl="microsoft" in _text(proc / "version").lower(),
        gpus=gpus,
        gpu_error=error,
        processor=platform.processor(),
    )


def find_gpus(runner: Runner) -> tuple[tuple[Gpu, ...], str]:
    """The GPUs, and why there are none where that is so."""
    query = [f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits"]
    try:
        try:
            done = runner(["nvidia-smi", *query])
        except MissingError:
            if not Path(WSL_NVIDIA_SMI).exists():
                raise
            done = runner([WSL_NVIDIA_SMI, *query])
    except QmdError as error:
        return (), f"{GPU_MISSING}: {error.message.removeprefix(f'{GPU_MISSING}: ')}"
    if not done.ok:
        said = (done.stdout.strip() or done.stderr.strip()).splitlines()
        return (), said[0] if said else f"nvidia-smi ended with status {done.returncode}"
    gpus = tuple(gpu for line in done.stdout.splitlines() if (gpu := _gpu(line)) is not None)
    return gpus, "" if gpus else "nvidia-smi lists no GPU"


def read_meminfo(path: Path) -> dict[str, int]:
    """/proc/meminfo in bytes; empty where there is none."""
    rows = re.findall(r"^(\w+):\s+(\d+) kB", _text(path), re.MULTILINE)
    return {name: int(kib) * 1024 for name, kib in rows}


def _gpu(line: str) -> Gpu | None:
    fields = [part.strip() for part in line.split(",")]
    if len(fields) != len(QUERY) or not fields[0].isdecimal():
        return None
    index, uuid, name, total, free, driver, capability = fields
    major_minor = re.fullmatch(r"(\d+)\.(\d+)", capability)
    pair = (int(major_minor[1]), int(major_minor[2])) if major_minor else None
    return Gpu(int(index), uuid, name, _mib(total), _mib(free), driver, pair)


def _mib(text: str) -> int | None:
    return int(text) * MIB if text.isdecimal() else None  # N/A, [N/A], [Not Supported]


def _darwin_memory(runner: Runner) -> int:
    try:
        text = runner(["sysctl", "-n", "hw.memsize"]).stdout.strip()
    except QmdError:
        return 0
    return int(text) if text.isdecimal() else 0


def _run(command: list[str]) -> Completed:
    return run(command, check=False, timeout_seconds=NVIDIA_SMI_SECONDS)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
