"""Packs: any mixture of lengths, shared prefixes, layouts of linear layers; held to transformers' own model on each sequence alone."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from embed_service.engine import attention, loader
from embed_service.engine.device import Device
from embed_service.engine.packed import KEYS_PER_TOKEN, LEAST_PREFIX_TOKENS, PackedBatch, PackedExecutor, plan
from embed_service.engine.prefixes import Prefix, Prefixes
from embed_service.engine.sequences import Sequences
from embed_service.errors import ModelError
from tests.models.engine import FLOAT32, compute, executor_of, spec_of
from tests.models.packs import ARCHITECTURES, TOLERANCE, alone, answers, executor, loaded, random_ids
from tests.support.checkpoints import checkpoint

CAUSAL_RERANKERS = ["qwen3-reranker", "qwen3-reranker-seq-cls", "llama-chat"]
quick = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize("name", ARCHITECTURES)
@quick
@given(data=st.data())
def test_any_mixture_of_lengths(name: str, data: st.DataObject) -> None:
    spec, _, _ = loaded(name)
    longest = spec.max_tokens
    length = st.integers(1, 40) | st.integers(1, min(600, longest)) | st.sampled_from([1, 2, min(longest, 1024)])
    lengths = data.draw(st.lists(length, min_size=1, max_size=9), "lengths")
    lengths += lengths[: data.draw(st.integers(0, 3), "repeated")]
    pieces = [random_ids(n, spec.vocabulary, seed) for seed, n in enumerate(lengths)]
    second = [data.draw(st.integers(1, n), "second") for n in lengths]
    packs = {"rows": data.draw(st.integers(1, 12), "rows"), "tokens": data.draw(st.sampled_from([1, 64, 500, 4096]), "tokens")}
    result = compute(executor(name, **packs), spec.role, Sequences.of(pieces, second))
    expected = np.stack([alone(name, ids, start) for ids, start in zip(pieces, second, strict=True)])
    np.testing.assert_allclose(answers(name, result.rows), expected, atol=TOLERANCE)
    assert result.computed_tokens == sum(lengths) and not result.failed


@pytest.mark.parametrize("name", ["qwen3-embedding", "bge-reranker-v2-m3"])
def test_a_sequence_of_the_models_full_length(name: str) -> None:
    spec, _, _ = loaded(name)
    assert spec.max_tokens == 8192
    pieces = [random_ids(n, spec.vocabulary, n) for n in (3, 8192, 700)]
    rows = compute(executor(name, tokens=2048), spec.role, Sequences.of(pieces)).rows
    expected = np.stack([alone(name, ids, len(ids)) for ids in pieces])
    np.testing.assert_allclose(answers(name, rows), expected, atol=TOLERANCE)


# Shared prefixes


@st.composite
def requests(draw: st.DrawFn) -> Sequences:
    """Sequences of one to three requests, each request with a prefix of its own that its sequences share."""
    pieces, prefix = [], []
    for request in range(draw(st.integers(1, 3))):
        shared = random_ids(draw(st.integers(0, 120)), 1000, 50 + request)
        for document in range(draw(st.integers(1, 5))):
            own = random_ids(draw(st.integers(1, 90)), 1000, 100 * request + document)
            pieces.append(np.concatenate([shared, own]))
            prefix.append(len(shared))
    order = draw(st.permutations(range(len(pieces))))
    return Sequences.of([pieces[i] for i in order], prefix=[prefix[i] for i in order])


def unshared(sequences: Sequences) -> Sequences:
    return dataclasses.replace(sequences, prefix=np.zeros_like(sequences.prefix))


@pytest.mark.parametrize("name", CAUSAL_RERANKERS)
@quick
@given(sequences=requests(), rows=st.integers(1, 9), tokens=st.sampled_from([1, 150, 4096]))
def test_a_shared_prefix_changes_nothing_but_the_work(name: str, sequences: Sequences, rows: int, tokens: int) -> None:
    expected = answers(name, compute(executor(name), "rerank", unshared(sequences)).rows)
    shared = executor(name, rows, tokens)
    first, again = (compute(shared, "rerank", sequences) for _ in range(2))
    np.testing.assert_allclose(answers(name, first.rows), expected, atol=TOLERANCE)
    np.testing.assert_allclose(answers(name, again.rows), expected, atol=TOLERANCE)
    counted = np.where(sequences.prefix >= LEAST_PREFIX_TOKENS, sequences.prefix, 0)
    prefixes = {ids[:n].tobytes(): n for ids, n in zip(sequences.split(), counted, strict=True)}
    own = int((sequences.lengths - counted).sum())
    assert first.computed_tokens == own + sum(prefixes.values()), "each prefix once"
    assert again.computed_tokens == own, "and not again for the next micro-batch of the request"


def test_the_prefix_matters() -> None:
    """The control of the test above: with another prefix's keys and values the answers differ."""
    shared, foreign = random_ids(60, 1000, 1), random_ids(60, 1000, 9)
    own = [random_ids(20, 1000, n) for n in (2, 3)]
    sequences, others = (Sequences.of([np.concatenate([ids, piece]) for piece in own], prefix=[60, 60]) for ids in (shared, foreign))
    right = answers("qwen3-reranker", compute(executor("qwen3-reranker"), "rerank", sequences).rows)
    mistaken = executor("qwen3-reranker")
    compute(mistaken, "rerank", others)
    kept = mistaken._prefixes["rerank"]
    prefix = kept.get(foreign.tobytes())
    assert prefix is not None
    kept.put(shared.tobytes(), prefix)
    wrong = answers("qwen3-reranker", compute(mistaken, "rerank", sequences).rows)
    assert np.abs(right - wrong).max() > 100 * TOLERANCE


class Watched:
    """A model that computes truly, notes the tokens of each forward, and first calls `before(pack)`."""

    def __init__(self, model: Any, before: Callable[[Any], None] = lambda pack: None) -> None:
        self.model, self.before = model, before
        self.spec, self.layout, self.columns = model.spec, model.layout, model.columns
        self.forwards: list[list[int]] = []

    def __call__(self, pack: Any) -> Any:
        self.before(pack)
        self.forwards.append(pack.lengths)
        return self.model(pack)


def test_prefixes_of_many_requests_are_computed_together() -> None:
    pieces = [np.concatenate([random_ids(30 + n, 1000, n), random_ids(5, 1000, 50 + d)]) for n in range(6) for d in range(2)]
    watched = Watched(loaded("qwen3-reranker")[1])
    of = PackedExecutor({"rerank": watched}, "cpu", 64, 4096)
    prepared = of.prepare("rerank", Sequences.of(pieces, prefix=[30 + n for n in range(6) for _ in range(2)]))
    of.run(prepared)
    assert [sorted(lengths) for lengths in watched.forwards] == [[30, 31, 32, 33, 34, 35], [5] * 12]
    assert isinstance(prepared, PackedBatch)
    assert all(not pack.prefixes for pack in prepared.packs), "what is kept is bounded; a pack must not hold it"


def test_a_prefix_that_makes_wrong_rows_is_not_kept() -> None:
    shared = random_ids(40, 1000, 1)
    sequences = Sequences.of([np.concatenate([shared, random_ids(9, 1000, n)]) for n in (2, 3)], prefix=[40, 40])
    of = executor("qwen3-reranker")
    compute(of, "rerank", sequences)
    prefix = of._prefixes["rerank"].get(shared.tobytes())
    assert prefix is not None
    with torch.inference_mode():
        prefix.layers[0][0].fill_(float("nan"))
    assert np.isnan(compute(of, "rerank", sequences).rows).all()
    assert np.isfinite(compute(of, "rerank", sequences).rows).all()


def test_kept_prefixes_make_room_for_a_text_of_the_other_model() -> None:
    """FAKE: no GPU is here to fill up; the embedding model says out of memory for as long as a prefix is kept."""
    embedder = loader.load_model(spec_of("embed", checkpoint("qwen3-embedding")), FLOAT32)

    def full(pack: Any) -> None:
        if of._prefixes["rerank"].tokens:
            raise torch.OutOfMemoryError("FAKE: out of memory")

    of = PackedExecutor({"embed": Watched(embedder, full), "rerank": loaded("qwen3-reranker")[1]}, "cpu", 64, 4096)
    shared = random_ids(40, 1000, 1)
    compute(of, "rerank", Sequences.of([np.concatenate([shared, random_ids(9, 1000, n)]) for n in (2, 3)], prefix=[40, 40]))
    assert of._prefixes["rerank"].tokens == 40
    result = compute(of, "embed", Sequences.of([random_ids(12, 1000, 5)]))
    assert not result.failed and result.oom_splits == 0 and np.isfinite(result.rows).all()


def test_an_encoder_shares_nothing() -> None:
    """Its first tokens see what follows them."""
    pieces = [np.concatenate([random_ids(60, 1000, 1), random_ids(20, 1000, n)]) for n in (2, 3)]
    one, other = (compute(executor("bge-reranker-base"), "rerank", Sequences.of(pieces, prefix=prefix)) for prefix in ([0, 0], [60, 60]))
    np.testing.assert_array_equal(one.rows, other.rows)
    assert other.computed_tokens == 160


def test_prefixes_are_bounded() -> None:
    prefixes = Prefixes(most_tokens=100)
    for n in range(3):
        prefixes.put(bytes([n]), Prefix(40))
    assert prefixes.get(bytes([0])) is None and prefixes.tokens == 80
    assert prefixes.get(bytes([1])) is not None
    prefixes.put(b"next", Prefix(30))
    assert prefixes.get(bytes([2])) is None, "the one that was used longest ago goes"
    assert prefixes.get(bytes([1])) is not None
    prefixes.put(b"long", Prefix(5000))
    assert prefixes.get(b"long") is not None and prefixes.tokens == 5000, "the next micro-batch of its request needs it"
    prefixes.put(b"after", Prefix(10))
    assert prefixes.get(b"long") is None and prefixes.tokens == 10


def test_out_of_memory_with_a_shared_prefix() -> None:
    """FAKE: no GPU is here to fill up; the model says out of memory for packs above 70 tokens."""
    spec, model, _ = loaded("qwen3-reranker")

    class Full:
        spec, layout, columns = model.spec, model.layout, model.columns

        def __call__(self, pack: Any) -> Any:
            if pack.tokens > 70:
                raise torch.OutOfMemoryError("FAKE: out of memory")
            return model(pack)

    pieces = [np.concatenate([random_ids(50, 1000, 1), random_ids(30, 1000, n)]) for n in range(5)]
    sequences = Sequences.of(pieces, prefix=[50] * 5)
    result = compute(PackedExecutor({"rerank": Full()}, "cpu", 64, 4096), "rerank", sequences)
    expected = compute(executor("qwen3-reranker"), "rerank", unshared(sequences))
    assert result.oom_splits == 2 and not result.failed
    np.testing.assert_allclose(result.rows, expected.rows, atol=1e-4)
    assert spec.kind == "yes_no"


def test_no_memory_even_for_token_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """FAKE: putting the ids on the device fails once, then for good."""
    from embed_service.engine import packed

    fails, make = [1], packed.make_pack

    def full(*args: Any) -> Any:
        if fails[0] > 0:
            fails[0] -= 1
            raise torch.OutOfMemoryError("FAKE: out of memory")
        return make(*args)

    monkeypatch.setattr(packed, "make_pack", full)
    sequences = Sequences.of([random_ids(n, 1000, n) for n in (5, 9)])
    assert np.isfinite(compute(executor("qwen3-reranker"), "rerank", sequences).rows).all()
    fails[0] = 3
    result = compute(executor("qwen3-reranker"), "rerank", sequences)
    assert sorted(result.failed) == [0, 1] and "MAX_INPUT_TOKENS" in result.failed[0]


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=30),
    prefixes=st.lists(st.sampled_from([b"", b"aaaa" * 20, b"bbbb" * 40]), min_size=30, max_size=30),
    rows=st.integers(1, 8),
    tokens=st.integers(1, 120),
)
def test_packs_hold_every_sequence_once_within_the_limits(lengths: list[int], prefixes: list[bytes], rows: int, tokens: int) -> None:
    packs = plan(lengths, prefixes, rows, tokens)
    assert sorted(index for indices in packs for index in indices) == list(range(len(lengths)))
    for indices in packs:
        assert len(indices) <= rows
        own = sum(lengths[i] for i in indices)
        before = [len(prefixes[i]) // 4 for i in indices]
        assert len(indices) == 1 or own + sum({prefixes[i]: len(prefixes[i]) // 4 for i in indices}.values()) <= tokens
        assert len(indices) == 1 or own + sum(before) <= KEYS_PER_TOKEN * tokens
        # Sequences of one prefix are neighbours, or one pack would hold the same keys twice.
        changes = [prefixes[i] for i in indices]
        assert len(set(changes)) == 1 + sum(a != b for a, b in itertools.pairwise(changes))


# The attention of a GPU, on a fake of torch's varlen_attn


def fake_varlen(query: Any, key: Any, value: Any, cu_q: Any, cu_k: Any, longest_q: int, longest_k: int, causal: bool, scale: Any) -> Any:
    """FAKE of torch's CUDA kernel by its documented contract: per sequence, a causal mask that ends at the last key."""
    assert cu_q.dtype == cu_k.dtype == torch.int32
    out = []
    for n in range(len(cu_q) - 1):
        q, k, v = query[cu_q[n] : cu_q[n + 1]], key[cu_k[n] : cu_k[n + 1]], value[cu_k[n] : cu_k[n + 1]]
        assert len(q) <= longest_q and len(k) <= longest_k
        mask = torch.ones(len(q), len(k), dtype=torch.bool).tril(len(k) - len(q)) if causal else None
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        out.append(scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)[0].transpose(0, 1))
    return torch.cat(out)


@pytest.mark.parametrize("name", ["qwen3-reranker", "bge-base"])
@quick
@given(sequences=requests())
def test_varlen_attention_is_given_the_right_keys(name: str, sequences: Sequences) -> None:
    """FAKE: varlen_attn runs on CUDA alone. What is tested is which keys each sequence gets."""
    spec, model, _ = loaded(name)
    expected = compute(executor(name), spec.role, unshared(sequences))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "_call_varlen", fake_varlen)
        patch.setattr(model, "layout", dataclasses.replace(model.layout, varlen=True))
        result = compute(executor(name, tokens=150), spec.role, sequences)
    np.testing.assert_allclose(answers(name, result.rows), answers(name, expected.rows), atol=TOLERANCE)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: tests/gpu has the true attention")
def test_without_cuda_varlen_attention_says_why_not() -> None:
    assert attention.varlen_works()


def test_an_attention_that_computes_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """FAKE: the trial on the CPU, with the right kernel and with one whose causal mask begins at the first key."""
    monkeypatch.setattr(attention, "_call_varlen", fake_varlen)
    assert attention._tried("cpu") is None

    def at_the_first_key(query: Any, key: Any, value: Any, cu_q: Any, cu_k: Any, *rest: Any) -> Any:
        out = []
        for n in range(len(cu_q) - 1):
            parts = query[cu_q[n] : cu_q[n + 1]], key[cu_k[n] : cu_k[n + 1]], value[cu_k[n] : cu_k[n + 1]]
            q, k, v = (x.transpose(0, 1)[None] for x in parts)
            mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
            out.append(scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)[0].transpose(0, 1))
        return torch.cat(out)

    monkeypatch.setattr(attention, "_call_varlen", at_the_first_key)
    assert "something else" in str(attention._tried("cpu"))


# Precision


def test_bfloat16_scores_stay_near_whatever_is_shared() -> None:
    """The tolerance of the wire contract: .02 of a score."""
    spec = spec_of("rerank", checkpoint("qwen3-reranker"))
    shared = random_ids(80, 1000, 1)
    sequences = Sequences.of([np.concatenate([shared, random_ids(n, 1000, n)]) for n in (10, 60, 25, 60)], prefix=[80] * 4)
    exact = answers("qwen3-reranker", compute(executor_of(spec), "rerank", unshared(sequences)).rows)
    coarse = executor_of(spec, Device("cpu", torch.bfloat16, "sdpa"))
    for batch in (sequences, unshared(sequences)):
        np.testing.assert_allclose(answers("qwen3-reranker", compute(coarse, "rerank", batch).rows), exact, atol=0.02)


def test_a_sliding_window_is_refused_where_it_would_cut() -> None:
    from transformers import Qwen3Config

    spec, _, _ = loaded("qwen3-reranker")
    config = Qwen3Config(num_hidden_layers=2, use_sliding_window=True, sliding_window=128, max_window_layers=0)
    with pytest.raises(ModelError, match="MAX_INPUT_TOKENS=128"):
        loader._refuse_sliding_windows(spec, config)
    loader._refuse_sliding_windows(dataclasses.replace(spec, max_tokens=128), config)
