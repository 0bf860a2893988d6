"""What the card itself can do, and where a forward's time goes."""

from __future__ import annotations

import contextlib
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import linear
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_shapes import Shape
from embed_service.engine.packed import PackedExecutor
from embed_service.engine.sequences import Sequences
from embed_service.models.spec import Role

SQUARE = 8_192
REPEATS = 8  # products that are timed together: one alone would be timed with its launch


@dataclass
class Timer:
    """Seconds of what is inside `with`: by the device's own events on CUDA, by the clock elsewhere."""

    device: str
    seconds: float = 0.0
    _events: list[Any] = field(default_factory=list)

    def __enter__(self) -> Timer:
        if self.device == "cuda":
            self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # type: ignore[no-untyped-call]
            self._events[0].record()
        else:
            self.seconds = -time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device == "cuda":
            self._events[1].record()
            self._events[1].synchronize()
            self.seconds = self._events[0].elapsed_time(self._events[1]) / 1e3
        else:
            self.seconds += time.perf_counter()


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


@torch.inference_mode()
def linear_rate(device: str, rows: int, inner: int, columns: int, rounds: int = 5) -> float:
    """Floating-point operations per second of a linear layer in bfloat16 over [rows, inner], the best of `rounds`."""
    x = torch.randn(rows, inner, device=device, dtype=torch.bfloat16)
    weight = torch.randn(columns, inner, device=device, dtype=torch.bfloat16)
    return 2.0 * rows * inner * columns / _best(device, lambda: linear(x, weight), rounds)


def model_rate(device: str, shape: Shape, tokens: int) -> float:
    """The same over all linear layers of one layer of `shape`: the most that a forward of that many tokens could reach."""
    parts = [(2.0 * tokens * inner * columns, linear_rate(device, tokens, inner, columns)) for inner, columns in shape.linears]
    return sum(work for work, _ in parts) / sum(work / rate for work, rate in parts)


@torch.inference_mode()
def fp8_rate(size: int) -> float:
    """Operations per second of torch._scaled_mm in float8 with one scale per tensor. Raises RuntimeError where the card has none."""
    kind = torch.float8_e4m3fn
    left = torch.randn(size, size, device="cuda").to(kind)
    right = torch.randn(size, size, device="cuda").to(kind).t()  # column-major, as cuBLAS wants it
    one = torch.ones((), device="cuda")
    return 2.0 * size**3 / _best("cuda", lambda: torch._scaled_mm(left, right, one, one, out_dtype=torch.bfloat16), 5)


def _best(device: str, compute: Callable[[], object], rounds: int) -> float:
    best = float("inf")
    compute()  # chooses the kernel
    for _ in range(rounds):
        with Timer(device) as timer:
            for _ in range(REPEATS):
                compute()
        best = min(best, timer.seconds / REPEATS)
    return best


def idle_share(executor: PackedExecutor, role: Role, batches: Sequence[Sequences], device: str) -> float:
    """Part of the time between the first micro-batch's begin and the last one's end in which none was being computed.

    As in the engine: while one computes, a thread prepares the next.
    """
    busy = []
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(executor.prepare, role, batches[0])
        synchronise(device)
        started = time.perf_counter()
        for following in [*batches[1:], None]:
            prepared = waiting.result()
            if following is not None:
                waiting = pool.submit(executor.prepare, role, following)
            with Timer(device) as timer:
                executor.run(prepared)
            busy.append(timer.seconds)
        whole = time.perf_counter() - started
    return max(0.0, 1 - sum(busy) / whole)


def breakdown(run: Callable[[], object], device: str) -> dict[str, Any]:
    """Where the device's time goes in one call: `shares` by kind, the `others` that take most, and `busy`, its part of the whole time."""
    from torch.autograd import DeviceType  # type: ignore[attr-defined]

    cuda = device == "cuda"
    run()
    synchronise(device)
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as profiler:
        started = time.perf_counter()
        run()
        synchronise(device)
        whole = time.perf_counter() - started
    wanted = DeviceType.CUDA if cuda else DeviceType.CPU
    spent: dict[str, float] = {}
    for event in profiler.key_averages():
        if event.device_type == wanted:
            spent[event.key] = spent.get(event.key, 0.0) + (event.self_device_time_total if cuda else event.self_cpu_time_total)
    total = sum(spent.values()) or 1.0
    kinds: dict[str, float] = {"matrix products": 0.0, "attention": 0.0, "everything else": 0.0}
    for name, microseconds in spent.items():
        kinds[_kind(name)] += microseconds / total
    others = sorted(((t / total, name) for name, t in spent.items() if _kind(name) == "everything else"), reverse=True)[:6]
    return {"busy": total / 1e6 / whole, "shares": kinds, "others": {name[:100]: share for share, name in others}}


def _kind(kernel: str) -> str:
    name = kernel.lower()
    if any(word in name for word in ("flash", "fmha", "attention")):
        return "attention"
    return "matrix products" if re.search(r"gemm|nvjet|cutlass|cublas|\b(add|b)?mm\b", name) else "everything else"


@contextlib.contextmanager
def peak(device: str) -> Iterator[list[float]]:
    """The most device memory that tensors took inside `with`, in GB; 0 elsewhere than on CUDA."""
    found = [0.0]
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    yield found
    if device == "cuda":
        found[0] = torch.cuda.max_memory_allocated() / 1e9


def median(samples: Sequence[float]) -> float:
    return statistics.median(samples)
