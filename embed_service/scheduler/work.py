"""The unit of work: one request's sequences, waiting for their rows."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from embed_service.engine.sequences import Int32, Sequences
from embed_service.models.spec import Role

Lane = Literal["interactive", "bulk"]
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
    created: float = field(default_factory=time.monotonic)
    rows: Float32 | None = None
    missing: int = 0
    queue_seconds: float = 0.0  # until its first sequence went to the engine
    compute_seconds: float = 0.0  # of the micro-batches that it was in
    started: float | None = None
    pending: deque[int] = field(init=False)  # what waits, longest first: neighbours of like length pad little
    deaths: dict[int, int] = field(default_factory=dict)  # index → engines that ended while computing it

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
    def length(self) -> int:
        return len(self.job.sequences[self.index])


@dataclass(eq=False)
class MicroBatch:
    """What goes to the engine in one message."""

    id: int
    role: Role
    items: list[Item]

    @property
    def tokens(self) -> int:
        return sum(item.length for item in self.items)

    def to_sequences(self) -> Sequences:
        return Sequences.of(
            [i.job.sequences[i.index] for i in self.items],
            [i.job.second[i.index] for i in self.items],
            [i.job.prefix[i.index] if i.job.prefix else 0 for i in self.items],
        )
