"""Telling out-of-memory from other errors, and giving cached memory back."""

from __future__ import annotations

import gc

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


def device_memory_bytes(device: str) -> int | None:
    """Memory that this process holds on a CUDA device, None elsewhere."""
    return int(torch.cuda.memory_reserved()) if device == "cuda" else None
