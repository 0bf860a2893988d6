"""The ring of samples behind /stats."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from embed_service.telemetry import history as module
from embed_service.telemetry import metrics
from embed_service.telemetry.history import INTERVAL_SECONDS, SAMPLES, SEARCHES, History, quantile


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("values", "q", "expected"),
    [
        ([], 0.5, None),
        ([3.0], 0.5, 3.0),
        ([3.0], 0.95, 3.0),
        ([1.0, 2.0], 0.5, 1.0),
        ([1.0, 2.0, 3.0], 0.5, 2.0),
        (list(map(float, range(1, 101))), 0.5, 50.0),
        (list(map(float, range(1, 101))), 0.95, 95.0),
        (list(map(float, range(1, 21))), 0.95, 19.0),
        ([1.0, 2.0, 3.0], 1.0, 3.0),
    ],
)
def test_quantiles_are_values_that_were_there(values: list[float], q: float, expected: float | None) -> None:
    assert quantile(values, q) == expected


def test_rates_are_of_the_time_that_passed() -> None:
    clock = Clock()
    history = History(clock)
    metrics.batch_sequences.labels("embed").observe(30)
    metrics.batch_sequences.labels("rerank").observe(10)
    metrics.computed_tokens.labels("embed").inc(500)
    for seconds in (0.2, 0.1, 0.4):
        history.searched(seconds)
    clock.now += 4  # a tick came late
    first = history.sample()
    assert (first.id, first.texts_per_second, first.tokens_per_second) == (1, 10.0, 125.0)
    assert (first.searches, first.search_p50, first.search_p95) == (3, 0.2, 0.4)
    clock.now += 2
    second = history.sample()
    assert (second.id, second.texts_per_second, second.tokens_per_second) == (2, 0.0, 0.0)
    assert (second.searches, second.search_p50, second.search_p95) == (0, None, None)
    assert history.after(0) == [first, second]
    assert history.after(1) == [second]
    assert history.after(9) == []


def test_what_waits_is_told_by_lane() -> None:
    history = History(Clock())
    try:
        metrics.queued_sequences.labels("interactive").set(3)
        metrics.queued_sequences.labels("bulk").set(40)
        metrics.queued_tokens.set(900)
        sample = history.sample()
        assert (sample.queued_interactive, sample.queued_bulk, sample.queued_tokens) == (3, 40, 900)
    finally:
        for lane in metrics.LANES:
            metrics.queued_sequences.labels(lane).set(0)
        metrics.queued_tokens.set(0)


def test_latencies_are_of_the_window_alone() -> None:
    clock = Clock()
    history = History(clock)
    history.searched(9.0)
    clock.now += SAMPLES * INTERVAL_SECONDS - 1
    history.searched(0.1)
    assert (history.latency().searches, history.latency().p95) == (2, 9.0)
    clock.now += 2
    assert (history.latency().searches, history.latency().p95) == (1, 0.1)
    clock.now += 1000
    assert (history.latency().searches, history.latency().p50) == (0, None)


def test_more_searches_than_are_kept_are_all_counted() -> None:
    clock = Clock()
    history = History(clock)
    per_second = 2 * SEARCHES // 600
    for second in range(1200):
        clock.now = 1000.0 + second
        for _ in range(per_second):
            history.searched(second / 1000)
    latency = history.latency()
    assert latency.searches == 601 * per_second, "those of the last ten minutes, and the second that is under way"
    assert latency.p50 is not None and latency.p50 > 1.0
    assert len(history._by_second) == 601
    clock.now += 590
    assert history.latency().searches == 11 * per_second
    clock.now += 1000
    assert history.latency().searches == 0


def test_its_memory_is_bounded() -> None:
    clock = Clock()
    history = History(clock)
    for _ in range(SAMPLES + 50):
        clock.now += 2
        history.sample()
    for _ in range(SEARCHES + 50):
        history.searched(0.1)
    kept = history.after(0)
    assert (len(kept), kept[0].id, kept[-1].id) == (SAMPLES, 51, SAMPLES + 50)
    assert len(history._searches) == SEARCHES
    assert history.sample().searches == SEARCHES + 50, "the count is of all"


def test_a_sample_that_fails_does_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INTERVAL_SECONDS", 0.001)
    history = History()
    taken: list[Any] = []
    real = history.sample

    def sample() -> Any:
        taken.append(None)
        if len(taken) == 1:
            raise RuntimeError("no metrics")
        return real()

    monkeypatch.setattr(history, "sample", sample)

    async def run() -> None:
        task = asyncio.create_task(history.run())
        while not history.after(0):
            await asyncio.sleep(0)
        task.cancel()

    asyncio.run(run())
    assert len(taken) >= 2
