"""Telling out-of-memory from other errors, giving cached memory back, and saying how much of it the engine holds."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

# What has no exception class of its own. The CPU's and Apple's allocators (c10/core/impl/alloc_cpu.cpp, MPSAllocator.mm: the second words
# are for one buffer larger than the device takes), and CUDA where not torch's allocator but the driver or a library finds the memory taken,
# by vLLM for example. None of these is sticky: the device goes on.
MESSAGES = (
    "can't allocate memory",
    "not enough memory",
    "Cannot allocate memory",
    "MPS backend out of memory",
    "Invalid buffer size",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)

DOES_NOT_FIT = (
    "A text of {tokens} tokens does not fit in the device's free memory: "
    "lower MAX_INPUT_TOKENS, raise EMBED_MEMORY_GB, or choose a smaller model."
)


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in MESSAGES)


def free_cache(device: torch.device) -> None:
    """Give the allocator's unused blocks back to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def weights_bytes(models: Iterable[object]) -> int:
    """Bytes of every tensor that loaded models hold, each once."""
    found = {id(tensor): tensor for model in models for tensor in _tensors(model)}
    return sum(tensor.numel() * tensor.element_size() for tensor in found.values())


def _tensors(holder: object) -> Iterator[torch.Tensor]:
    """Tensors of an object of the engine's own, of the modules in it, and of what oneDNN laid out, which is no parameter."""
    if isinstance(holder, torch.Tensor):
        yield holder
    elif isinstance(holder, torch.nn.Module):
        yield from holder.parameters()
        yield from holder.buffers()
        for module in holder.modules():
            yield from (value for value in vars(module).values() if isinstance(value, torch.Tensor))
    elif type(holder).__module__.startswith("embed_service."):
        for value in vars(holder).values():
            yield from _tensors(value)


@dataclass(frozen=True)
class MemoryMeter:
    """What the engine says of its memory. `device`: cpu, cuda or mps; `weights`: bytes of the loaded models."""

    device: str
    weights: int

    def read(self) -> dict[str, int | bool]:
        """Bytes: `weights`; on CUDA also `reserved` (by torch's allocator, weights included), `free` and `total` of the device.

        `unified` is true where the device's memory is the machine's.
        """
        if self.device != "cuda":
            return {"weights": self.weights, "unified": self.device == "mps"}
        free, total = torch.cuda.mem_get_info()
        return {
            "weights": self.weights,
            "reserved": torch.cuda.memory_reserved(),
            "free": free,
            "total": total,
            "unified": bool(torch.cuda.get_device_properties().is_integrated),
        }
