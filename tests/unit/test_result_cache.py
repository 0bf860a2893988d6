"""The result cache alone: which row is kept how long, in how much memory, under which key."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embed_service.scheduler.cache import ENTRY_BYTES, ResultCache, keys_of
from embed_service.telemetry import metrics

SOURCE = ("embed", "model", "cpu", "float32")


def row(number: int, columns: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.full((1, columns), number, np.float32)


PUT = st.tuples(st.just("put"), st.integers(0, 9), st.integers(1, 300))
GET = st.tuples(st.just("get"), st.integers(0, 9), st.just(0))


@given(st.integers(0, 4_000), st.lists(PUT | GET, max_size=60))
@settings(max_examples=200, deadline=None)
def test_the_rows_used_last_are_kept_within_the_bound(limit: int, steps: Sequence[tuple[str, int, int]]) -> None:
    cache = ResultCache(limit)
    model: list[tuple[int, int, int]] = []  # (key, columns, value), the one used last stands last
    for step, (kind, key, columns) in enumerate(steps):
        kept = next((entry for entry in model if entry[0] == key), None)
        if kind == "get":
            found = cache.get("embed", [bytes([key])])
            assert (kept is None) == (found == {})
            if kept is not None:
                assert found[0].tolist() == [kept[2]] * kept[1]
                model.remove(kept)
                model.append(kept)
        else:
            cache.put([bytes([key])], row(step, columns))
            if ENTRY_BYTES + 4 * columns <= limit:
                model = [entry for entry in model if entry[0] != key] + [(key, columns, step)]
                while sum(ENTRY_BYTES + 4 * size for _, size, _ in model) > limit:
                    model.pop(0)
        assert cache.size == sum(ENTRY_BYTES + 4 * size for _, size, _ in model) <= limit
        assert len(cache) == len(model)


@pytest.mark.parametrize(("columns", "count"), [(1, 5_500), (384, 1_400)])
def test_the_bound_is_of_true_memory(columns: int, count: int) -> None:
    cache = ResultCache(count * (ENTRY_BYTES + 4 * columns))
    rows = row(1, columns)
    tracemalloc.start()
    for number in range(3 * count):  # filled, then turned over twice
        cache.put(keys_of(SOURCE, [np.array([number], np.int32)], [None]), rows)
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(cache) == count
    assert 0.5 * cache.size < used <= cache.limit


def test_what_is_not_finite_is_not_kept() -> None:
    cache = ResultCache(10_000)
    cache.put([b"a", b"b", b"c"], np.array([[1, 2], [np.nan, 0], [np.inf, 0]], np.float32))
    assert list(cache.get("embed", [b"a", b"b", b"c"])) == [0]


def test_hits_misses_and_bytes_are_counted() -> None:
    def counts() -> list[float]:
        return [counter.labels("rerank")._value.get() for counter in (metrics.cache_hits, metrics.cache_misses)]

    cache = ResultCache(10_000)
    before = counts()
    cache.get("rerank", [b"a"])
    cache.put([b"a"], row(1, 1))
    cache.get("rerank", [b"a", b"b"])
    assert [now - then for now, then in zip(counts(), before, strict=True)] == [1, 2]
    assert metrics.cache_bytes._value.get() == cache.size == ENTRY_BYTES + 4
    cache.clear()
    assert metrics.cache_bytes._value.get() == cache.size == len(cache) == 0


def test_a_key_is_of_all_that_decides_a_row() -> None:
    ids = np.array([5, 6, 7], np.int32)
    (base,) = keys_of(SOURCE, [ids], [None])
    assert len(base) == 16
    others = [
        *keys_of((*SOURCE[:3], "bfloat16"), [ids], [None]),
        *keys_of(("rerank", *SOURCE[1:]), [ids], [None]),
        *keys_of(SOURCE, [ids, ids, ids[:2], ids[::-1]], [0, 2, None, None]),
    ]
    assert len({base, *others}) == len(others) + 1
    assert keys_of(SOURCE, [ids.copy()], [None]) == [base]
