"""The unit of work: one request's sequences, waiting for their rows."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from embed_service.engine.protocol import Lane
from embed_service.engine.sequences import Int32, Sequences
from embed_service.models.spec import Role

__all__ = ["LANES", "Cost", "Float32", "Item", "Job", "Lane", "MicroBatch"]

LANES: tuple[Lane, ...] = ("interactive", "bulk")
Float32 = NDArray[np.float32]


@dataclass(eq=False)
class Job:
    """One request's sequences of one role.

    `sequences`: int32 arrays of token ids, special tokens included. `second`: where the second segment begins in each, or None.
    `prefix`: how many first tokens each has in common with others of this job (0: none).
    `rows` fills up as micro-batches come back: float32 [n, dimensions] or [n, 1].
    """

    role: Role
    lane: Lane
    caller: str
    sequences: list[Int32]
    second: list[int | None]
    done: asyncio.Future[Float32]
    prefix: list[int] | None = None
    created: float = field(default_factory=time.monotonic)  # when it was queued: it is tokenised before
    rows: Float32 | None = None
    missing: int = 0
    queue_seconds: float = 0.0  # until its first sequence went to the engine
    compute_seconds: float = 0.0  # of the micro-batches that it was in
    started: float | None = None
    pending: deque[int] = field(init=False)  # what waits, longest first: neighbours of like length pad little
    deaths: dict[int, int] = field(default_factory=dict)  # index → engines that ended while computing it; 0: while it stood by

    def __post_init__(self) -> None:
        self.missing = len(self.sequences)
        self.pending = deque(sorted(range(len(self.sequences)), key=lambda i: -len(self.sequences[i])))

    @property
    def tokens(self) -> int:
        return sum(len(s) for s in self.sequences)


@dataclass(frozen=True)
class Item:
    """One sequence of a job."""

    job: Job
    index: int

    @property
    def prefix(self) -> int:
        """How many of its first tokens are computed once for all of its job."""
        return self.job.prefix[self.index] if self.job.prefix else 0

    @property
    def length(self) -> int:
        """Tokens of its own."""
        return len(self.job.sequences[self.index]) - self.prefix


class Cost:
    """Tokens that a micro-batch computes: those of each item's own, and each job's shared prefix once."""

    def __init__(self) -> None:
        self.tokens = 0
        self._prefixes: dict[Job, int] = {}

    def of(self, item: Item) -> int:
        """What `item` would add."""
        return item.length + max(0, item.prefix - self._prefixes.get(item.job, 0))

    def add(self, item: Item) -> None:
        self.tokens += self.of(item)
        self._prefixes[item.job] = max(item.prefix, self._prefixes.get(item.job, 0))


@dataclass(eq=False)
class MicroBatch:
    """What goes to the engine in one message."""

    id: int
    role: Role
    lane: Lane
    items: list[Item]

    @property
    def tokens(self) -> int:
        cost = Cost()
        for item in self.items:
            cost.add(item)
        return cost.tokens

    def to_sequences(self) -> Sequences:
        return Sequences.of(
            [i.job.sequences[i.index] for i in self.items],
            [i.job.second[i.index] for i in self.items],
            [i.prefix for i in self.items],
        )
