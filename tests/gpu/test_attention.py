"""torch's attention for packs on this card."""

from __future__ import annotations

import pytest
import torch

from embed_service.engine.attention import varlen_works
from tests.support.gpu import REHEARSAL


def test_varlen_attention_works_from_compute_capability_8_on() -> None:
    if REHEARSAL:
        assert varlen_works(), "a CPU has none"
        return
    capability = torch.cuda.get_device_capability()
    if capability < (8, 0):
        pytest.skip(f"compute capability {capability}: flash attention begins with 8.0")
    assert varlen_works() is None
