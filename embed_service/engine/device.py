"""Where and in which precision to compute."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from embed_service.engine.memory import is_out_of_memory
from embed_service.errors import ModelError
from embed_service.settings import Settings

DeviceType = Literal["cuda", "mps", "cpu"]
Attention = Literal["varlen", "sdpa"]  # flash attention over a whole pack; or scaled-dot-product attention per run of equal lengths
log = logging.getLogger(__name__)

BF16_ADVANTAGE = 1.3  # times faster than float32 a CPU must be in bfloat16 to use it
PROBE_SHAPE = (512, 1024, 3072)  # tokens × hidden × intermediate of Qwen3-0.6B


@dataclass(frozen=True)
class Device:
    type: DeviceType
    dtype: torch.dtype
    attention: Attention

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")


def choose_device(settings: Settings) -> Device:
    """The device in force. Also sets the process's threads and its cap on device memory. Raises ModelError (no_cuda, no_mps, no_memory)."""
    device = _type(settings)
    if device == "cpu":
        torch.set_num_threads(settings.cpu_threads or physical_cores())
    if device == "cuda" and settings.embed_memory_gb is not None:
        # torch must be the first to refuse: an overcommit hangs a machine with unified memory.
        try:
            torch.cuda.set_per_process_memory_fraction(memory_fraction(settings.embed_memory_gb, torch.cuda.mem_get_info()[1]))
        except RuntimeError as error:  # the first thing that the device is asked for
            raise explain(error) or error from error
    dtype = _dtype(settings, device)
    try:
        return Device(device, dtype, _attention(settings, device, dtype))
    except RuntimeError as error:
        raise explain(error) or error from error


def explain(error: Exception) -> ModelError | None:
    """The sentence for an error of the device outside of a micro-batch; None for any other error."""
    first = str(error).strip().partition("\n")[0]
    if is_out_of_memory(error):
        return ModelError(
            "no_memory",
            f"The device has no memory left for the engine ({first}): free memory that other programs hold, or choose smaller models.",
            retryable=True,
        )
    if isinstance(error, torch.AcceleratorError):
        return ModelError(
            "no_cuda",
            f"torch {torch.__version__} cannot compute on this GPU ({first}): see with nvidia-smi whether it is free and its driver new, "
            "install a torch that supports it, or set DEVICE=cpu.",
            retryable=True,
        )
    return None


def memory_fraction(gigabytes: float, total_bytes: int) -> float:
    """EMBED_MEMORY_GB as a part of the device's memory, at most 1."""
    return min(1.0, gigabytes * 1e9 / total_bytes)


def physical_cores() -> int:
    """Cores that this process may run on, hyper-threads counted once, no more than the container's CPU quota."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    siblings = set()
    for cpu in allowed:
        try:
            siblings.add(Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text())
        except OSError:
            siblings.add(str(cpu))
    return max(1, min(len(siblings), _quota(Path("/sys/fs/cgroup/cpu.max"))))


def bfloat16_is_faster(seconds: float = 0.1) -> bool:
    """Whether this CPU multiplies matrices of a model's shape BF16_ADVANTAGE times faster in bfloat16 than in float32."""
    times = {dtype: _fastest_gemm(dtype, seconds) for dtype in (torch.float32, torch.bfloat16)}
    return times[torch.float32] > BF16_ADVANTAGE * times[torch.bfloat16]


def _type(settings: Settings) -> DeviceType:
    wanted = settings.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ModelError(
            "no_cuda",
            f"DEVICE=cuda, but torch {torch.__version__} sees no CUDA device: give the container the GPU (NVIDIA Container Toolkit), "
            "update the driver, or set DEVICE=auto or DEVICE=cpu.",
        )
    if wanted == "mps" and not torch.backends.mps.is_available():
        raise ModelError("no_mps", "DEVICE=mps, but torch sees no Apple GPU here: set DEVICE=auto or DEVICE=cpu.")
    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _dtype(settings: Settings, device: DeviceType) -> torch.dtype:
    if settings.dtype != "auto":
        return torch.bfloat16 if settings.dtype == "bfloat16" else torch.float32
    if device == "cuda":
        return torch.bfloat16
    return torch.bfloat16 if device == "cpu" and bfloat16_is_faster() else torch.float32


def _attention(settings: Settings, device: DeviceType, dtype: torch.dtype) -> Attention:
    if device != "cuda" or not settings.use_flash_attn or dtype != torch.bfloat16:
        return "sdpa"
    from embed_service.engine.attention import varlen_works

    why_not = varlen_works()
    if why_not is None:
        return "varlen"
    log.warning("flash attention over packed sequences is not to be had (%s): computing with scaled-dot-product attention", why_not)
    return "sdpa"


def _fastest_gemm(dtype: torch.dtype, seconds: float) -> float:
    rows, inner, columns = PROBE_SHAPE
    left, right = torch.ones(rows, inner, dtype=dtype), torch.ones(columns, inner, dtype=dtype)
    fastest, end = float("inf"), 0.0
    while time.perf_counter() < end or not end:
        start = time.perf_counter()
        torch.nn.functional.linear(left, right)
        now = time.perf_counter()
        # The first call, which sets the kernel up, only starts the clock.
        fastest, end = (min(fastest, now - start), end) if end else (fastest, now + seconds)
    return fastest


def _quota(file: Path) -> int:
    """CPUs that a cgroup's cpu.max ("200000 100000") allows, rounded up; a large number where it sets none."""
    try:
        limit, period = file.read_text().split()
        return -(-int(limit) // int(period))
    except (OSError, ValueError):
        return 1 << 16
