"""How much is measured: the whole takes at most 25 minutes on two cores, `BENCH=quick` at most four."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """So many clients with so many texts in a request, until `texts` are embedded."""

    clients: int
    per_request: int
    texts: int

    @property
    def name(self) -> str:
        return f"{self.clients} × {self.per_request}"


@dataclass(frozen=True)
class Plan:
    name: str
    seconds: float  # for everything; no further round begins after its share is spent
    rounds: int
    words: tuple[int, int]  # of a text, least and most
    cells: tuple[Cell, ...]
    idle_queries: int
    bulk_texts: int  # embedded by four clients, alone and while short queries are asked
    documents: int
    tokens: tuple[int, ...]  # of a document for the Qwen3 reranker; each a row
    memory: tuple[int, int]  # texts before and after which memory is read
    starts: int


FULL = Plan(
    name="full",
    seconds=1500,
    rounds=3,
    words=(20, 900),
    cells=(Cell(1, 1, 24), Cell(8, 1, 64), Cell(1, 32, 64), Cell(8, 32, 400)),
    idle_queries=40,
    bulk_texts=256,
    documents=40,
    tokens=(180, 900),
    memory=(100, 10_000),
    starts=3,
)
QUICK = Plan(
    name="quick",
    seconds=220,
    rounds=1,
    words=(20, 120),
    cells=(Cell(1, 1, 8), Cell(8, 1, 16), Cell(1, 32, 32), Cell(8, 32, 256)),
    idle_queries=10,
    bulk_texts=256,
    documents=10,
    tokens=(180, 900),
    memory=(100, 1_000),
    starts=1,
)


class Clock:
    """Ends the rounds of a section in time."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        return self._end - time.monotonic()

    def rounds(self, most: int, share: float) -> Iterator[int]:
        """0, 1, … up to `most`: the first always, another while it would end within `share` of what was left at the start."""
        limit = time.monotonic() + share * max(self.left(), 0)
        longest = 0.0
        for number in range(most):
            started = time.monotonic()
            if number and started + longest > limit:
                return
            yield number
            longest = max(longest, time.monotonic() - started)
