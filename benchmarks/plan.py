"""How much is measured: the whole takes at most 20 minutes on two cores, `BENCH=quick` at most three."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """So many clients with so many texts in a request, until `texts` are embedded. `once`: after the rounds, a single time."""

    clients: int
    per_request: int
    texts: int
    once: bool = False

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
    documents: int
    idle_queries: int
    busy_seconds: float
    starts: int


FULL = Plan(
    name="full",
    seconds=1200,
    rounds=3,
    words=(20, 900),
    cells=(Cell(1, 1, 24), Cell(8, 1, 64), Cell(32, 1, 96), Cell(1, 32, 96), Cell(8, 32, 256), Cell(32, 32, 1024, once=True)),
    documents=40,
    idle_queries=40,
    busy_seconds=20,
    starts=3,
)
QUICK = Plan(
    name="quick",
    seconds=150,
    rounds=1,
    words=(20, 120),
    cells=(Cell(1, 1, 8), Cell(8, 1, 16), Cell(32, 1, 32), Cell(1, 32, 32), Cell(8, 32, 256)),
    documents=40,
    idle_queries=20,
    busy_seconds=6,
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
