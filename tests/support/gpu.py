"""The card that the tests in tests/gpu run on, or its stand-in.

GPU_TESTS_DEVICE=cpu runs the same tests without a GPU, in small: only the device differs. FAKE there: torch's varlen attention (by its
documented contract) and running out of memory (above a number of tokens). Such a run says nothing about a GPU; it keeps the tests right.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.support.require import require

DEVICE = os.environ.get("GPU_TESTS_DEVICE", "cuda")
REHEARSAL = DEVICE == "cpu"
Mode = Literal["bfloat16 varlen", "bfloat16 sdpa", "float32 sdpa"]  # by default; USE_FLASH_ATTN=false; DTYPE=float32
MODES: tuple[Mode, ...] = get_args(Mode)
ROOT = Path(__file__).resolve().parents[2]


def need_card() -> None:
    """Skip without an NVIDIA GPU (fail with REQUIRE=gpu)."""
    require("gpu", REHEARSAL or torch.cuda.is_available(), f"torch {torch.__version__} sees no CUDA device")


def need_memory(what: str, needed: int) -> None:
    """Skip where `what` needs more device memory than is free now."""
    free = needed if REHEARSAL else torch.cuda.mem_get_info()[0]
    if free < needed:
        pytest.skip(f"{what} needs about {needed / 1e9:.0f} GB of device memory, and {free / 1e9:.0f} GB are free")


def need_package(name: str) -> Any:
    """The module, or a skip that names it: a rented machine has torch and transformers and little else."""
    return pytest.importorskip(name, reason=f"{name} is not installed")


def checkpoint_folder(name: str) -> Path:
    """A checkpoint of tests/support/checkpoints.py; one that was made elsewhere and brought along where what makes it is not installed."""
    try:
        from tests.support.checkpoints import checkpoint

        return checkpoint(name)
    except Exception as error:  # a package, a package's file or a version that this machine lacks
        brought = sorted((ROOT / ".cache" / "checkpoints").glob(f"*/{name}"), key=lambda folder: folder.stat().st_mtime)
        if not brought:
            pytest.skip(f"the checkpoint {name} cannot be made here ({type(error).__name__}: {error}), and .cache/checkpoints has none")
        return brought[-1]


@contextmanager
def device_of(mode: Mode) -> Iterator[Any]:
    """The engine's own choice of a `Device` under the settings of `mode`."""
    need_package("pydantic_settings")
    from embed_service.engine import attention, device
    from embed_service.settings import Settings

    dtype, kind = mode.split()
    if not REHEARSAL:
        found = device.choose_device(Settings(device="cuda", dtype=dtype, use_flash_attn=kind == "varlen"))  # type: ignore[arg-type]
        assert (found.type, found.dtype_name) == ("cuda", dtype)
        if kind == "varlen" and torch.cuda.get_device_capability() < (8, 0):
            pytest.skip("flash attention needs a card of compute capability 8.0")
        assert found.attention == kind
        yield found
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "_call_varlen", fake_varlen)
        yield device.Device("cpu", getattr(torch, dtype), kind)  # type: ignore[arg-type]


def fake_varlen(query: Any, key: Any, value: Any, cu_q: Any, cu_k: Any, longest_q: int, longest_k: int, causal: bool, scale: Any) -> Any:
    """FAKE of torch's CUDA kernel: per sequence, a causal mask that ends at the last key."""
    out = []
    for n in range(len(cu_q) - 1):
        q, k, v = query[cu_q[n] : cu_q[n + 1]], key[cu_k[n] : cu_k[n + 1]], value[cu_k[n] : cu_k[n + 1]]
        mask = torch.ones(len(q), len(k), dtype=torch.bool).tril(len(k) - len(q)) if causal else None
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)
        out.append(attended[0].transpose(0, 1))
    return torch.cat(out)


def random_ids(count: int, vocabulary: int, seed: int) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(0, vocabulary, count, np.int32)


def forget() -> None:
    """Give the card's memory back before the next model."""
    from embed_service.engine.memory import free_cache

    free_cache(torch.device(DEVICE))
