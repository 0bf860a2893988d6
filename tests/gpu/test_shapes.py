"""The true shapes with random weights made on the device, and running out of the device's memory."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.gpu_shapes import QWEN3_06B, SHAPES, Shape, bytes_needed, make_body, tiny
from embed_service.engine.attention import varlen_works
from embed_service.engine.heads import PackedModel
from embed_service.engine.packed import PackedExecutor
from embed_service.engine.sequences import Sequences
from embed_service.models.spec import Role
from tests.support.gpu import DEVICE, REHEARSAL, need_memory, random_ids

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
TOKENS = 16_384  # of a pack, as by default
UNIT = 64 if REHEARSAL else 1_024  # tokens of the texts that run out of memory


def models_of(shape: Shape) -> dict[Role, PackedModel]:
    from benchmarks.gpu_contestants import packed_models

    need_memory(shape.name, bytes_needed(shape, TOKENS))
    body = make_body(shape, DEVICE, torch.bfloat16)
    head = torch.randn(shape.hidden, device=DEVICE) / shape.hidden**0.5
    return packed_models(body, shape, head, varlen=not REHEARSAL and varlen_works() is None)


@pytest.fixture(scope="module", params=list(SHAPES))
def shape(request: pytest.FixtureRequest) -> Shape:
    found = SHAPES[request.param]
    return tiny(found, 2) if REHEARSAL else found


@pytest.fixture(scope="module")
def executor(shape: Shape) -> Iterator[PackedExecutor]:
    made = [PackedExecutor(models_of(shape), DEVICE, 64, TOKENS)]
    yield made[0]
    made.clear()
    gc.collect()


def compute(executor: PackedExecutor, role: Role, sequences: Sequences) -> Any:
    return executor.run(executor.prepare(role, sequences))


def test_a_text_is_the_same_alone_and_in_a_pack(shape: Shape, executor: PackedExecutor) -> None:
    pieces = [random_ids(n, shape.vocabulary, n) for n in (600, 1, 16, 600, 37, 1100, 2 if REHEARSAL else 8192, 300)]
    result = compute(executor, "embed", Sequences.of(pieces))
    assert result.rows.shape == (len(pieces), shape.hidden) and not result.failed and not result.oom_splits
    np.testing.assert_allclose(np.linalg.norm(result.rows, axis=1), 1, atol=1e-5)
    alone = np.concatenate([compute(executor, "embed", Sequences.of([piece])).rows for piece in pieces])
    assert (result.rows * alone).sum(1).min() >= 0.999
    # The comparison means something: different texts differ.
    cosines = result.rows @ result.rows.T
    assert (cosines[0, 1:3] < 0.9).all()


def test_a_pair_scores_the_same_with_its_prefix_shared(shape: Shape, executor: PackedExecutor) -> None:
    shared = random_ids(100, shape.vocabulary, 1)
    pieces = [np.concatenate([shared, random_ids(n, shape.vocabulary, n)]) for n in (80, 800, 80, 1, 300)]
    together = compute(executor, "rerank", Sequences.of(pieces, prefix=[100] * len(pieces)))
    alone = np.concatenate([compute(executor, "rerank", Sequences.of([piece])).rows for piece in pieces])
    scores = [torch.from_numpy(rows).sigmoid().numpy() for rows in (together.rows, alone)]
    np.testing.assert_allclose(*scores, atol=0.02)
    shares = REHEARSAL or varlen_works() is None
    assert together.computed_tokens == sum(map(len, pieces)) - (400 if shares else 0)


# Memory


@pytest.fixture(scope="module")
def small() -> Iterator[list[PackedExecutor]]:
    """0.6B's width with four layers: activations of hundreds of megabytes, weights that load in no time. Any number of tokens in a pack."""
    shape = tiny(QWEN3_06B, 2) if REHEARSAL else Shape(**{**vars(QWEN3_06B), "layers": 4, "vocabulary": 1_000})
    made = [PackedExecutor(models_of(shape), DEVICE, 64, 1 << 20)]
    compute(made[0], "embed", texts(4 * UNIT))  # whatever is taken once for all
    yield made
    made.clear()
    gc.collect()


def texts(*lengths: int) -> Sequences:
    return Sequences.of([random_ids(n, 1_000, n + seed) for seed, n in enumerate(lengths)])


@contextmanager
def room_for(executor: PackedExecutor, tokens: int) -> Iterator[Callable[[], None]]:
    """As much device memory as a pack of `tokens` takes, and a fifth more. Gives what checks that no more was taken."""
    if REHEARSAL:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PackedExecutor, "_try", fake_try(tokens))
            yield lambda: None
        return
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    compute(executor, "embed", texts(tokens))
    cap = before + int(1.2 * (torch.cuda.max_memory_reserved() - before))
    assert cap - before > 50e6, "activations so small would be lost in the allocator's own steps"
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.set_per_process_memory_fraction(cap / torch.cuda.mem_get_info()[1])

    def check() -> None:
        assert torch.cuda.max_memory_reserved() <= cap

    try:
        yield check
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def fake_try(tokens: int) -> Callable[..., Any]:
    """FAKE: a device on which a pack of more than `tokens` finds no memory."""
    true = PackedExecutor._try

    def fake(self: PackedExecutor, batch: Any, pack: Any, result: Any) -> Any:
        return None if pack.tokens > tokens else true(self, batch, pack, result)

    return fake


def test_what_does_not_fit_is_split_and_answered(small: list[PackedExecutor]) -> None:
    sequences = texts(*[UNIT] * 16)
    expected = compute(small[0], "embed", sequences)
    assert expected.oom_splits == 0
    with room_for(small[0], 4 * UNIT) as check:
        for _ in range(2):  # the second time with what the first has left
            result = compute(small[0], "embed", sequences)
            assert result.oom_splits >= 2 and not result.failed
            assert (result.rows * expected.rows).sum(1).min() >= 0.999
            assert result.computed_tokens == 16 * UNIT
        check()


def test_a_text_that_cannot_fit_fails_alone_and_the_engine_goes_on(small: list[PackedExecutor]) -> None:
    sequences = texts(UNIT, 16 * UNIT, UNIT // 2, 3)
    expected = compute(small[0], "embed", sequences)
    assert not expected.failed
    with room_for(small[0], 4 * UNIT) as check:
        result = compute(small[0], "embed", sequences)
        assert list(result.failed) == [1] and f"{16 * UNIT} tokens does not fit" in result.failed[1]
        assert np.isnan(result.rows[1]).all()
        fits = [0, 2, 3]
        assert (result.rows[fits] * expected.rows[fits]).sum(1).min() >= 0.999
        after = compute(small[0], "embed", texts(UNIT, UNIT))
        assert not after.failed and after.oom_splits == 0 and np.isfinite(after.rows).all()
        check()
    whole = compute(small[0], "embed", sequences)
    assert not whole.failed and whole.oom_splits == 0, "with the memory back, everything fits again"
