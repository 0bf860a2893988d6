"""Telling out-of-memory from other errors, and giving cached memory back."""

from __future__ import annotations

import gc

import torch

# A CPU allocator has no exception class of its own: c10/core/impl/alloc_cpu.cpp and MPSAllocator.mm throw these words.
CPU_MESSAGES = ("can't allocate memory", "not enough memory", "MPS backend out of memory", "Cannot allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in CPU_MESSAGES)


def free_cache(device: torch.device) -> None:
    """Give the allocator's unused blocks back to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def device_memory_bytes(device: str) -> int | None:
    """Memory that this process holds on a CUDA device, None elsewhere."""
    return int(torch.cuda.memory_reserved()) if device == "cuda" else None
