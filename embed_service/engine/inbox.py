"""Prepared micro-batches that stand by at the engine, and which of them the device takes next."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from embed_service.engine.protocol import Lane

T = TypeVar("T")


class Inbox(Generic[T]):
    """Interactive entries go first, but a bulk one that has stood by for `bulk_aging_seconds` goes before them.

    `put` and `close` may be called in any thread, `take` in one. `clock` gives seconds.
    """

    def __init__(self, bulk_aging_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._aging = bulk_aging_seconds
        self._clock = clock
        self._entries: dict[Lane, deque[tuple[float, T]]] = {"interactive": deque(), "bulk": deque()}
        self._closed = False
        self._changed = threading.Condition()

    def put(self, lane: Lane, entry: T) -> None:
        """Add an entry behind the others of its lane."""
        with self._changed:
            self._entries[lane].append((self._clock(), entry))
            self._changed.notify()

    def close(self) -> None:
        """Nothing more will come: `take` gives what is left, then None."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def take(self) -> T | None:
        """The entry whose turn it is, waiting for one; None once the inbox is closed and empty."""
        with self._changed:
            while not (lane := self._next_lane()):
                if self._closed:
                    return None
                self._changed.wait()
            return self._entries[lane].popleft()[1]

    def _next_lane(self) -> Lane | None:
        bulk = self._entries["bulk"]
        if bulk and (not self._entries["interactive"] or self._clock() - bulk[0][0] >= self._aging):
            return "bulk"
        return "interactive" if self._entries["interactive"] else None
