"""The last minutes of the metrics, in memory: rates, latencies of searches and what waits, sampled every few seconds.

`/metrics` is for Prometheus, which keeps a history of its own; this one is for the page at `/`, which must show something on a box that has
no Prometheus. It is bounded: SAMPLES samples, the times of the last SEARCHES searches, and how many there were in each second.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import structlog
from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample as Point

from embed_service.telemetry import metrics

__all__ = ["INTERVAL_SECONDS", "SAMPLES", "History", "Latency", "Sample", "quantile"]

INTERVAL_SECONDS = 2.0
SAMPLES = 300  # ten minutes
WINDOW_SECONDS = SAMPLES * INTERVAL_SECONDS
SEARCHES = 4_096  # times from which the quantiles of the window are taken
OF_ONE_SAMPLE = 512  # times from which the quantiles of one sample are taken; a sample that has more keeps the last

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Sample:
    """What happened since the sample before, and what waits now.

    `id` counts from 1; `time` in seconds since 1970; rates per second; quantiles in seconds, None where no search was answered.
    """

    id: int
    time: float
    texts_per_second: float
    tokens_per_second: float
    searches: int
    search_p50: float | None
    search_p95: float | None
    queued_interactive: int
    queued_bulk: int
    queued_tokens: int


@dataclass(frozen=True)
class Latency:
    """Of the searches (interactive requests that were answered) within the window; the quantiles, in seconds, of the last SEARCHES."""

    searches: int
    p50: float | None
    p95: float | None


class _Collected(Protocol):
    def collect(self) -> Iterable[Metric]: ...


class History:
    """`run` takes a sample every INTERVAL_SECONDS; the outermost layer reports each search to `searched`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._samples: deque[Sample] = deque(maxlen=SAMPLES)
        self._searches: deque[tuple[float, float]] = deque(maxlen=SEARCHES)  # when it was answered, and seconds
        self._by_second: deque[list[int]] = deque(maxlen=int(WINDOW_SECONDS) + 1)  # a second of the clock, and searches in it
        self._since_sample: deque[float] = deque(maxlen=OF_ONE_SAMPLE)
        self._count = 0
        self._taken = clock()
        self._texts, self._tokens = _texts(), _tokens()

    def searched(self, seconds: float) -> None:
        """An interactive request was answered with 200."""
        now = self._clock()
        self._searches.append((now, seconds))
        if not self._by_second or self._by_second[-1][0] != int(now):
            self._by_second.append([int(now), 0])
        self._by_second[-1][1] += 1
        self._since_sample.append(seconds)
        self._count += 1

    def sample(self) -> Sample:
        """Take one now."""
        now, texts, tokens = self._clock(), _texts(), _tokens()
        elapsed = max(now - self._taken, 1e-3)
        times = sorted(self._since_sample)
        queued = {sample.labels["lane"]: int(sample.value) for sample in _samples(metrics.queued_sequences)}
        taken = Sample(
            id=self._samples[-1].id + 1 if self._samples else 1,
            time=round(time.time(), 3),
            texts_per_second=_short((texts - self._texts) / elapsed),
            tokens_per_second=_short((tokens - self._tokens) / elapsed),
            searches=self._count,
            search_p50=quantile(times, 0.5),
            search_p95=quantile(times, 0.95),
            queued_interactive=queued["interactive"],
            queued_bulk=queued["bulk"],
            queued_tokens=int(_total(metrics.queued_tokens, "embed_queued_tokens")),
        )
        self._taken, self._texts, self._tokens, self._count = now, texts, tokens, 0
        self._since_sample.clear()
        self._samples.append(taken)
        return taken

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(INTERVAL_SECONDS)
            try:
                self.sample()
            except Exception:  # a page without new points is no reason to end the process, nor to stop for good
                log.exception("the metrics could not be sampled")

    def after(self, number: int) -> list[Sample]:
        """The samples whose id is greater, oldest first."""
        return [sample for sample in self._samples if sample.id > number]

    def latency(self) -> Latency:
        """Of the searches within WINDOW_SECONDS. Where there were more than are kept, they are counted in whole seconds."""
        oldest = self._clock() - WINDOW_SECONDS
        while self._searches and self._searches[0][0] < oldest:
            self._searches.popleft()
        times = sorted(seconds for _, seconds in self._searches)
        count = len(times) if len(times) < SEARCHES else sum(searches for second, searches in self._by_second if second >= int(oldest))
        return Latency(count, quantile(times, 0.5), quantile(times, 0.95))


def quantile(ordered: list[float], q: float) -> float | None:
    """The smallest of the ascending values that at least a part `q` of them does not exceed (nearest rank); None of none."""
    if not ordered:
        return None
    rank = max(0, -int(-q * len(ordered) // 1) - 1)
    return _short(ordered[min(rank, len(ordered) - 1)])


def _texts() -> float:
    return _total(metrics.batch_sequences, "embed_batch_sequences_sum")


def _tokens() -> float:
    return _total(metrics.computed_tokens, "embed_computed_tokens_total")


def _total(metric: _Collected, name: str) -> float:
    return sum(sample.value for sample in _samples(metric) if sample.name == name)


def _samples(metric: _Collected) -> list[Point]:
    return [sample for family in metric.collect() for sample in family.samples]


def _short(value: float) -> float:
    """Four significant digits: what a plot can show."""
    return float(f"{value:.4g}")
