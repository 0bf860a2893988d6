"""From what came back to figures: rates, percentiles by nearest rank, the seconds of each link and what they are made of."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from qmdctl.bench.client import PARTS, Answer
from qmdctl.bench.load import PhaseRun, Run, Search
from qmdctl.bench.workload import KINDS, LINKS

ENOUGH = 3  # searches: the mean of fewer is chance
P95_SAMPLES = 20  # below, the nearest rank of a 95th percentile is the slowest sample and says nothing of a tail


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest rank: the smallest value that at least `percent` of all values do not exceed. ValueError without values."""
    if not values:
        raise ValueError("there are no values")
    return sorted(values)[max(math.ceil(percent / 100 * len(values)) - 1, 0)]


def mean(values: Iterable[float]) -> float:
    kept = list(values)
    return sum(kept) / len(kept) if kept else 0.0


@dataclass(frozen=True)
class LinkFigures:
    """Means over the samples, in seconds. `parts` are what the server told.

    `rest` is network, TLS, JSON and the wait behind what the device computes already: the queue ends where a text goes to the engine.
    """

    seconds: float
    parts: dict[str, float]
    rest: float
    tokens: float
    generated: float

    @property
    def generated_per_second(self) -> float:
        """Tokens; 0 where the server does not count them."""
        return self.generated / self.seconds if self.seconds else 0.0

    def payload(self) -> dict[str, Any]:
        told = {f"{name}_seconds": round(value, 4) for name, value in self.parts.items()}
        return {
            "mean_seconds": round(self.seconds, 4),
            **told,
            "rest_seconds": round(self.rest, 4) if told else None,
            "mean_tokens": round(self.tokens, 1),
            **({"mean_generated_tokens": round(self.generated, 1)} if self.generated else {}),
        }


@dataclass(frozen=True)
class SearchFigures:
    """`p95` is None below P95_SAMPLES."""

    count: int
    failed: int
    p50: float
    p95: float | None
    slowest: float
    per_second: float
    links: dict[str, LinkFigures] = field(default_factory=dict)

    @property
    def mean_seconds(self) -> float:
        return sum(link.seconds for link in self.links.values())

    def payload(self) -> dict[str, Any]:
        return {
            "count": self.count,
            "failed": self.failed,
            "p50_seconds": round(self.p50, 4),
            "p95_seconds": None if self.p95 is None else round(self.p95, 4),
            "slowest_seconds": round(self.slowest, 4),
            "per_second": round(self.per_second, 4),
            "links": {name: link.payload() for name, link in self.links.items()},
        }


@dataclass(frozen=True)
class IndexFigures:
    """`tokens_per_second` as the server counts tokens."""

    batches: int
    chunks: int
    chunks_per_second: float
    tokens_per_second: float
    tokens_per_chunk: float
    batch: LinkFigures

    @property
    def minutes_per_10000(self) -> float:
        return 10_000 / self.chunks_per_second / 60

    def payload(self) -> dict[str, Any]:
        return {
            "batches": self.batches,
            "chunks": self.chunks,
            "chunks_per_second": round(self.chunks_per_second, 3),
            "tokens_per_second": round(self.tokens_per_second, 1),
            "tokens_per_chunk": round(self.tokens_per_chunk, 1),
            "minutes_per_10000_chunks": round(self.minutes_per_10000, 2),
            "batch": self.batch.payload(),
        }


@dataclass(frozen=True)
class PhaseFigures:
    """None where nothing of that kind was answered in the phase, or belongs to it."""

    run: PhaseRun
    searches: SearchFigures | None
    indexing: IndexFigures | None

    @property
    def enough(self) -> bool:
        """Whether its searches stand for more than themselves: one of each agent at least, and none cut, which are the slower ones."""
        count = self.searches.count if self.searches else 0
        return count >= max(self.run.phase.agents, ENOUGH) and not (self.run.cut_searches or self.run.failed_searches)

    def payload(self) -> dict[str, Any]:
        return {
            "name": self.run.phase.name,
            "agents": self.run.phase.agents,
            "seconds": round(self.run.seconds, 3),
            "failed_searches": self.run.failed_searches,
            "cut_searches": self.run.cut_searches,
            "cut_requests": self.run.cut,
            "searches": self.searches.payload() if self.searches else None,
            "indexing": self.indexing.payload() if self.indexing else None,
        }


def phase_figures(run: PhaseRun) -> PhaseFigures:
    return PhaseFigures(run, _searches(run), _indexing(run))


def _searches(run: PhaseRun) -> SearchFigures | None:
    if not run.searches:
        return None
    seconds = [search.seconds for search in run.searches]
    links: dict[str, LinkFigures] = {kind: link_figures(answers) for kind in LINKS if (answers := _of(run.searches, kind))}
    p95 = percentile(seconds, 95) if len(seconds) >= P95_SAMPLES else None
    rate = len(seconds) / run.seconds if run.seconds else 0.0
    return SearchFigures(len(seconds), run.failed_searches, percentile(seconds, 50), p95, max(seconds), rate, links)


def _of(searches: list[Search], kind: str) -> list[Answer]:
    return [link for search in searches for link in search.links if link.kind == kind]


def _indexing(run: PhaseRun) -> IndexFigures | None:
    if not run.batches:
        return None
    chunks, tokens = sum(batch.texts for batch in run.batches), sum(batch.tokens for batch in run.batches)
    return IndexFigures(
        len(run.batches), chunks, chunks / run.index_seconds, tokens / run.index_seconds, tokens / chunks, link_figures(run.batches)
    )


def link_figures(answers: list[Answer]) -> LinkFigures:
    seconds = mean(answer.seconds for answer in answers)
    told = all(answer.parts for answer in answers)
    parts = {name: mean(answer.parts.get(name, 0.0) for answer in answers) for name in PARTS} if told else {}
    rest = max(seconds - sum(parts.values()), 0.0)
    return LinkFigures(seconds, parts, rest, mean(answer.tokens for answer in answers), mean(answer.generated for answer in answers))


def traffic(run: Run) -> dict[str, dict[str, int]]:
    """Requests that were answered in the phases, and bytes of their bodies, by kind."""
    totals: dict[str, dict[str, int]] = {}
    for kind in KINDS:
        answers = [answer for answer in answers_of(run) if answer.kind == kind]
        if answers:
            totals[kind] = {
                "requests": len(answers),
                "sent_bytes": sum(answer.sent for answer in answers),
                "received_bytes": sum(answer.received for answer in answers),
            }
    return totals


def answers_of(run: Run) -> list[Answer]:
    """All that were answered rightly in the phases; those of a search that failed elsewhere are not among them."""
    return [*(link for phase in run.done for search in phase.searches for link in search.links), *(b for p in run.done for b in p.batches)]


def failures(run: Run) -> dict[str, dict[str, int]]:
    """How many requests failed and how, by kind: {"rerank": {"503": 2}}. Those of the warm-up count."""
    counted: dict[str, Counter[str]] = {}
    for answer in [*(a for a in run.warming if not a.ok), *(a for phase in run.done for a in phase.failures)]:
        counted.setdefault(answer.kind, Counter())[answer.failure] += 1
    return {kind: dict(counts) for kind, counts in counted.items()}


def first_failure(run: Run) -> Answer | None:
    return next(iter([*(a for a in run.warming if not a.ok), *(a for phase in run.done for a in phase.failures)]), None)
