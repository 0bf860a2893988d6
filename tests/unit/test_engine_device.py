"""Choice of device, precision and threads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from embed_service.engine import attention, device
from embed_service.errors import ModelError
from embed_service.settings import Settings

no_gpu = pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="this machine has a GPU")


@pytest.fixture(autouse=True)
def _same_threads() -> object:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@no_gpu
@pytest.mark.parametrize(("wanted", "code"), [("cuda", "no_cuda"), ("mps", "no_mps")])
def test_a_missing_device_is_an_error_with_its_fix(wanted: str, code: str) -> None:
    with pytest.raises(ModelError, match=f"DEVICE={wanted}, but torch.*set DEVICE=auto or DEVICE=cpu") as caught:
        device.choose_device(Settings(device=wanted))  # type: ignore[arg-type]
    assert caught.value.code == code and not caught.value.retryable


@no_gpu
def test_auto_takes_the_cpu_where_there_is_no_gpu() -> None:
    assert device.choose_device(Settings(device="auto", dtype="float32")).type == "cpu"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_cpu_computes_in_the_dtype_asked_for_with_the_threads_asked_for(dtype: str) -> None:
    chosen = device.choose_device(Settings(device="cpu", dtype=dtype, cpu_threads=1))  # type: ignore[arg-type]
    assert (chosen.type, chosen.dtype_name, chosen.attention) == ("cpu", dtype, "sdpa")
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(
    ("float32", "bfloat16", "expected"), [(1.0, 0.5, torch.bfloat16), (1.0, 0.9, torch.float32), (1.0, 4.0, torch.float32)]
)
def test_auto_dtype_on_a_cpu_follows_the_measurement(
    monkeypatch: pytest.MonkeyPatch, float32: float, bfloat16: float, expected: torch.dtype
) -> None:
    """FAKE times, so that each kind of processor is tried; the measurement itself runs below."""
    monkeypatch.setattr(device, "_fastest_gemm", lambda dtype, seconds: {torch.float32: float32, torch.bfloat16: bfloat16}[dtype])
    assert device.choose_device(Settings(device="cpu", dtype="auto")).dtype == expected


def test_the_measurement_gives_a_verdict() -> None:
    assert device.bfloat16_is_faster(seconds=0.01) in (True, False)


def test_threads_are_physical_cores_within_the_quota(tmp_path: Path) -> None:
    assert 1 <= device.physical_cores() <= (os.cpu_count() or 1)
    quota = tmp_path / "cpu.max"
    for text, expected in (("150000 100000", 2), ("100000 100000", 1), ("max 100000", 1 << 16)):
        quota.write_text(text)
        assert device._quota(quota) == expected
    assert device._quota(tmp_path / "none") == 1 << 16


def test_embed_memory_gb_is_a_part_of_the_device() -> None:
    assert device.memory_fraction(12, 24_000_000_000) == 0.5
    assert device.memory_fraction(200, 24_000_000_000) == 1


def test_a_gpu_that_others_filled_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    """FAKE: a CUDA device whose context cannot be made."""

    def refuse() -> tuple[int, int]:
        raise torch.AcceleratorError("CUDA error: out of memory\nmore lines")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", refuse)
    with pytest.raises(ModelError, match="free memory that other programs hold") as caught:
        device.choose_device(Settings(device="cuda", embed_memory_gb=4))
    assert caught.value.code == "no_memory" and caught.value.retryable


@pytest.mark.parametrize("why_not", [None, "no kernel image is available"], ids=["well", "broken"])
def test_flash_attention_is_used_where_it_computes_what_it_should(
    monkeypatch: pytest.MonkeyPatch, why_not: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """FAKE CUDA device, and what the trial of the attention on it says."""
    monkeypatch.setattr(attention, "varlen_works", lambda: why_not)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    chosen = device.choose_device(Settings(device="cuda"))
    assert (chosen.type, chosen.dtype_name, chosen.attention) == ("cuda", "bfloat16", "sdpa" if why_not else "varlen")
    assert ("no kernel image" in caplog.text) == bool(why_not)
    assert device.choose_device(Settings(device="cuda", use_flash_attn=False)).attention == "sdpa"
    assert device.choose_device(Settings(device="cuda", dtype="float32")).attention == "sdpa"
