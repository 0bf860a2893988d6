"""Linear layers laid out for oneDNN compute what plain ones do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from embed_service.engine import linears, loader
from embed_service.engine.packed import PackedExecutor
from embed_service.engine.sequences import Sequences
from tests.models.engine import FLOAT32, compute
from tests.models.packs import TOLERANCE, answers, loaded, random_ids


@pytest.mark.parametrize("name", ["bge-base", "bge-reranker-base", "qwen3-embedding", "nomic"])
def test_linear_layers_laid_out_anew_compute_the_same(name: str) -> None:
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        pytest.skip("torch was built without oneDNN")
    spec, _, _ = loaded(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linears, "_pays", lambda *_: False)
        plain = loader.load_model(spec, FLOAT32)
        patch.setattr(linears, "_pays", lambda *_: True)
        laid_out = loader.load_model(spec, FLOAT32)
    assert _linears(plain) and not _linears(laid_out, of=torch.nn.Linear)
    sequences = Sequences.of([random_ids(n, spec.vocabulary, n) for n in (1, 40, 17)])
    one, other = (compute(PackedExecutor({spec.role: m}, "cpu", 64, 4096), spec.role, sequences).rows for m in (plain, laid_out))
    np.testing.assert_allclose(answers(name, one), answers(name, other), atol=TOLERANCE)


def _linears(model: Any, of: type[torch.nn.Module] = torch.nn.Linear) -> list[torch.nn.Module]:
    return [module for module in model._body.module.modules() if isinstance(module, of)]


def test_what_the_processor_cannot_do_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """FAKE processor: torch refuses bfloat16 layouts on one without its units with this error."""
    model = torch.nn.Sequential(torch.nn.Linear(8, 8))

    def refuse(*_: Any) -> Any:
        raise RuntimeError("mkldnn_reorder_linear_weight: bf16 path needs the cpu support avx_ne_convert or avx512bw")

    monkeypatch.setattr(linears, "PrepackedLinear", refuse)
    assert linears.prepack(model) == [] and isinstance(model[0], torch.nn.Linear)
