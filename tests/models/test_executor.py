"""The executor against float32 references of one text alone, on every architecture."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embed_service.engine import device, loader, pack
from embed_service.engine.device import Device
from embed_service.engine.loader import load_model
from embed_service.engine.pack import Pack
from embed_service.engine.packed import PackedExecutor
from embed_service.engine.sequences import Sequences
from embed_service.errors import ModelError
from tests.models import reference
from tests.models.engine import FLOAT32, compute, executor_of, judged_sequences, pair_sequences, spec_of, text_ids, unrecognised
from tests.models.texts import QUERY, TEXTS
from tests.support.checkpoints import checkpoint
from tests.support.service import minilm_path
from tests.support.texts import prose

TOLERANCE = 1e-5
EMBEDDINGS = [("qwen3-embedding", "last", 1024), ("nomic", "mean", 1024), ("bge-base", "cls", 512), ("minilm", "mean", 256)]


def folder_of(name: str) -> Path:
    return Path(minilm_path()) if name == "minilm" else checkpoint(name)


def config_of(name: str) -> Any:
    return reference.nomic_config(folder_of(name)) if name == "nomic" else None


def sigmoid(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return 1 / (1 + np.exp(-logits[:, 0].astype(np.float64)))


@pytest.mark.parametrize(("name", "pooling", "max_tokens"), EMBEDDINGS)
def test_embeddings_are_those_of_each_text_alone(name: str, pooling: str, max_tokens: int) -> None:
    folder = folder_of(name)
    spec = spec_of("embed", folder, max_input_tokens=1024)
    assert (spec.pooling, spec.max_tokens) == (pooling, max_tokens)
    expected = reference.embed(folder, TEXTS, pooling, max_tokens, config_of(name))
    sequences = Sequences.of(text_ids(folder, TEXTS, max_tokens))
    result = compute(executor_of(spec), "embed", sequences)
    np.testing.assert_allclose(result.rows, expected, atol=TOLERANCE)
    np.testing.assert_allclose(np.linalg.norm(result.rows, axis=1), 1, atol=TOLERANCE)
    assert result.computed_tokens == len(sequences.ids)
    assert result.padded_tokens == len(sequences.ids), "nothing is padded"
    # The comparison means something: no two texts are near each other, and another pooling is far away.
    cosines = expected @ expected.T - np.eye(len(TEXTS))
    assert cosines.max() < 0.99
    for other in {"last", "cls", "mean"} - {pooling}:
        wrong = compute(executor_of(dataclasses.replace(spec, pooling=other)), "embed", sequences)  # type: ignore[arg-type]
        # The one-word text may have few tokens, so the median over texts is looked at.
        assert np.median(np.abs(wrong.rows - expected).max(axis=1)) > 100 * TOLERANCE


@pytest.mark.parametrize(("name", "pooling", "max_tokens"), EMBEDDINGS)
def test_packs_do_not_change_results_nor_order(name: str, pooling: str, max_tokens: int) -> None:
    folder = folder_of(name)
    spec = spec_of("embed", folder, max_input_tokens=1024)
    sequences = Sequences.of(text_ids(folder, TEXTS * 2, max_tokens))
    one, many = (compute(executor_of(spec, **limits), "embed", sequences) for limits in ({}, {"pack_rows": 4, "pack_tokens": 512}))
    np.testing.assert_allclose(many.rows, one.rows, atol=TOLERANCE)


@pytest.mark.parametrize(("name", "pooling", "tokens"), [("nomic", "mean", 3000), ("qwen3-embedding", "last", 8192)])
def test_long_texts(name: str, pooling: str, tokens: int) -> None:
    """nomic past the 2,048 positions that it was trained on, with the same plain rotary positions as its repository's own code."""
    folder = folder_of(name)
    spec = spec_of("embed", folder)
    assert spec.max_tokens == 8192
    texts = ["short", prose(2 * tokens, seed=5)]
    expected = reference.embed(folder, texts, pooling, tokens, config_of(name))
    pieces = text_ids(folder, texts, tokens)
    assert len(pieces[1]) == tokens
    np.testing.assert_allclose(compute(executor_of(spec), "embed", Sequences.of(pieces)).rows, expected, atol=TOLERANCE)


def test_attention_across_sequences_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the tests above: an encoder whose tokens see their neighbours' answers differently."""
    folder = checkpoint("bge-base")
    spec = spec_of("embed", folder)
    sequences = Sequences.of(text_ids(folder, TEXTS, 512))
    right = compute(executor_of(spec), "embed", sequences).rows
    monkeypatch.setattr(pack, "_runs", lambda lengths: [pack.Run(0, 1, sum(lengths))])
    wrong = compute(executor_of(spec), "embed", sequences).rows
    assert np.abs(right - wrong).max(axis=1).min() > 100 * TOLERANCE


def test_qwen3_embedding_saved_as_a_causal_language_model(tmp_path: Path) -> None:
    """The same weights under "model.…" names, beside a head that embeddings do not use, give the same vectors."""
    from transformers import AutoModel, Qwen3ForCausalLM

    folder = checkpoint("qwen3-embedding")
    shutil.copytree(folder, tmp_path / "model")
    base = AutoModel.from_pretrained(folder, dtype=torch.float32)
    causal = Qwen3ForCausalLM(base.config)
    causal.model.load_state_dict(base.state_dict())
    causal.save_pretrained(tmp_path / "model")
    sequences = Sequences.of(text_ids(folder, TEXTS, 256))
    rows = [compute(executor_of(spec_of("embed", path)), "embed", sequences).rows for path in (folder, tmp_path / "model")]
    np.testing.assert_allclose(rows[0], rows[1], atol=TOLERANCE)


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("qwen3-reranker", reference.SUFFIX),
        ("qwen3-reranker-seq-cls", reference.SUFFIX),
        ("llama-chat", reference.SUFFIX.removesuffix("<think>\n\n</think>\n\n")),
    ],
    ids=["qwen3", "qwen3-seq-cls", "llama"],
)
def test_yes_no_scores_are_the_softmax_over_two_logits(name: str, suffix: str) -> None:
    folder = checkpoint(name)
    spec = spec_of("rerank", folder)
    causal = checkpoint("qwen3-reranker") if name == "qwen3-reranker-seq-cls" else folder
    expected = reference.judge(causal, QUERY, TEXTS, max_tokens=512, suffix=suffix)
    assert spec.template_prefix == reference.PREFIX and spec.template_suffix == suffix
    result = compute(executor_of(spec), "rerank", judged_sequences(folder, QUERY, TEXTS, 512, suffix))
    np.testing.assert_allclose(sigmoid(result.rows), expected, atol=TOLERANCE)
    assert expected.max() - expected.min() > 0.05, "the documents must be told apart"
    without_template = reference.judge(causal, QUERY, TEXTS, max_tokens=512, suffix="")
    assert np.abs(without_template - expected).max() > 0.01, "a wrong template must show"


@pytest.mark.parametrize(("name", "max_tokens"), [("bge-reranker-base", 512), ("bge-reranker-v2-m3", 1024), ("bert-cross-encoder", 512)])
def test_classifier_scores_are_those_of_each_pair_alone(name: str, max_tokens: int) -> None:
    folder = checkpoint(name)
    spec = spec_of("rerank", folder, max_input_tokens=1024)
    assert spec.max_tokens == max_tokens
    expected = reference.cross_encode(folder, QUERY, TEXTS, max_tokens)
    sequences = pair_sequences(folder, QUERY, TEXTS, max_tokens)
    result = compute(executor_of(spec), "rerank", sequences)
    np.testing.assert_allclose(sigmoid(result.rows), expected, atol=TOLERANCE)
    assert expected.max() - expected.min() > 0.05, "the documents must be told apart"
    if spec.segments:
        flat = dataclasses.replace(sequences, second=sequences.lengths)
        wrong = compute(executor_of(spec), "rerank", flat)
        assert np.abs(sigmoid(wrong.rows) - expected).max() > 0.001, "token types must matter"


def test_unknown_architecture_runs_on_sentence_transformers() -> None:
    from sentence_transformers import SentenceTransformer

    folder = checkpoint("distilbert")
    spec = spec_of("embed", folder)
    assert not spec.recognised and spec.pooling is None and spec.dimensions == 64
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS, batch_size=1)
    result = compute(executor_of(spec), "embed", Sequences.of(text_ids(folder, TEXTS, spec.max_tokens)))
    np.testing.assert_allclose(result.rows, expected, atol=TOLERANCE)


def test_sentence_transformers_and_the_own_path_agree() -> None:
    folder = Path(minilm_path())
    spec = spec_of("embed", folder)
    sequences = Sequences.of(text_ids(folder, TEXTS, spec.max_tokens))
    own, other = (compute(executor_of(s), "embed", sequences).rows for s in (spec, unrecognised(spec)))
    np.testing.assert_allclose(own, other, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["minilm", "qwen3-embedding"])
def test_bfloat16_stays_near(name: str) -> None:
    folder = folder_of(name)
    spec = spec_of("embed", folder, max_input_tokens=256)
    sequences = Sequences.of(text_ids(folder, TEXTS, 256))
    exact = compute(executor_of(spec), "embed", sequences).rows
    coarse = compute(executor_of(spec, Device("cpu", torch.bfloat16, "sdpa"), 4, 512), "embed", sequences).rows
    assert (exact * coarse).sum(1).min() > 0.999
    np.testing.assert_allclose(np.linalg.norm(coarse, axis=1), 1, atol=TOLERANCE)


def test_a_sequence_without_tokens_is_answered() -> None:
    spec = spec_of("embed", checkpoint("qwen3-embedding"))
    rows = compute(executor_of(spec), "embed", Sequences.of([np.zeros(0, np.int32), np.array([9693], np.int32)])).rows
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=TOLERANCE)


def test_missing_weights_are_an_error_not_random_values(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(checkpoint("bge-base"), tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    weights = load_file(file)
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"EMBED_MODEL=.* lack 1 weights .*encoder\.layer\.1\.output\.dense\.weight") as caught:
        load_model(spec_of("embed", tmp_path / "model"), FLOAT32)
    assert caught.value.code == "bad_files"


class FakeMemory:
    """FAKE device memory: a model that computes truly, but says out of memory above `tokens`, as a full GPU does (none is here)."""

    def __init__(self, model: Any, tokens: int, error: Callable[[str], Exception] = torch.OutOfMemoryError) -> None:
        self.model, self.tokens, self.error = model, tokens, error
        self.spec, self.layout, self.columns = model.spec, model.layout, model.columns

    def __call__(self, pack: Pack) -> torch.Tensor:
        if pack.tokens > self.tokens:
            raise self.error("CUDA out of memory. Tried to allocate more than there is")
        rows: torch.Tensor = self.model(pack)
        return rows


def full_executor(model: Any, *fake: Any) -> PackedExecutor:
    return PackedExecutor({model.spec.role: FakeMemory(model, *fake)}, "cpu", 64, 1 << 20)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_out_of_memory_halves_until_it_fits(error: type[Exception]) -> None:
    folder = checkpoint("bge-base")
    spec = spec_of("embed", folder)
    model = load_model(spec, FLOAT32)
    pieces = text_ids(folder, TEXTS, 512)
    sequences = Sequences.of(pieces)
    expected = compute(PackedExecutor({"embed": model}, "cpu", 64, 1 << 20), "embed", sequences)
    result = compute(full_executor(model, 400, error), "embed", sequences)
    assert result.oom_splits >= 2
    too_long = [n for n, ids in enumerate(pieces) if len(ids) > 400]
    assert too_long and sorted(result.failed) == too_long
    fits = [n for n in range(len(TEXTS)) if n not in too_long]
    np.testing.assert_allclose(result.rows[fits], expected.rows[fits], atol=TOLERANCE)
    assert np.isnan(result.rows[too_long]).all()
    assert "512 tokens does not fit" in result.failed[too_long[0]] and "MAX_INPUT_TOKENS" in result.failed[too_long[0]]


def test_a_real_allocator_failure_counts_as_out_of_memory() -> None:
    from embed_service.engine.memory import is_out_of_memory

    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 55)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(torch.AcceleratorError("CUDA error: device-side assert triggered"))
    assert not is_out_of_memory(RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"))


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA` to enable device-side assertions."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("Invalid buffer size: 32.00 GiB"),
    ],
)
def test_memory_that_others_took_counts_as_out_of_memory(error: Exception) -> None:
    """FAKE: the words of the CUDA driver, of cuBLAS and of Apple's allocator, while computing and while loading."""
    spec = spec_of("embed", checkpoint("bge-base"))
    model = load_model(spec, FLOAT32)
    sequences = Sequences.of([np.arange(5, 5 + n, dtype=np.int32) for n in (30, 20, 10)])
    result = compute(full_executor(model, 40, lambda message: error), "embed", sequences)
    assert result.oom_splits > 0 and not result.failed and np.isfinite(result.rows).all()


def _refuse(error: Exception) -> Callable[..., Any]:
    def load(*args: object, **kwargs: object) -> Any:
        raise error

    return load


def test_an_error_of_the_device_while_loading_does_not_accuse_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of("embed", checkpoint("bge-base"))
    taken = torch.AcceleratorError("CUDA error: out of memory\nmore lines")
    monkeypatch.setattr(loader, "_from_pretrained", _refuse(taken))
    with pytest.raises(ModelError, match="does not fit in the memory") as caught:
        load_model(spec, FLOAT32)
    assert caught.value.code == "no_memory" and caught.value.retryable

    old = torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device\nmore lines")
    monkeypatch.setattr(loader, "_from_pretrained", _refuse(old))
    with pytest.raises(torch.AcceleratorError):
        load_model(spec, FLOAT32)
    told = device.explain(old)
    assert told is not None and told.code == "no_cuda" and "no kernel image" in told.message and "more lines" not in told.message
    first = device.explain(taken)
    assert first is not None and first.code == "no_memory"
    assert device.explain(ValueError("anything else")) is None


def test_other_errors_are_not_swallowed() -> None:
    spec = spec_of("embed", checkpoint("bge-base"))
    with pytest.raises(IndexError):
        compute(executor_of(spec), "embed", Sequences.of([np.array([spec.vocabulary], np.int32)]))
