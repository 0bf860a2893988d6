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
    """Interactive entries go first, but a bulk one goes before them `bulk_aging_seconds` after the first of them passed it. Its time before
    that does not count: it waited for the device, as everything does. Entries put `at_once` go before all others.

    `put` and `close` may be called in any thread, `take` in one. `clock` gives seconds.
    """

    def __init__(self, bulk_aging_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._aging = bulk_aging_seconds
        self._clock = clock
        self._entries: dict[Lane, deque[T]] = {"interactive": deque(), "bulk": deque()}
        self._urgent: deque[T] = deque()
        self._passed_over_since: float | None = None
        self._closed = False
        self._changed = threading.Condition()

    def put(self, lane: Lane, entry: T, *, at_once: bool = False) -> None:
        """Add an entry behind the others of its lane."""
        with self._changed:
            (self._urgent if at_once else self._entries[lane]).append(entry)
            self._changed.notify()

    def close(self) -> None:
        """Nothing more will come: `take` gives what is left, then None."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def take(self) -> T | None:
        """The entry whose turn it is, waiting for one; None once the inbox is closed and empty."""
        with self._changed:
            while not (queue := self._next()):
                if self._closed:
                    return None
                self._changed.wait()
            return queue.popleft()

    def _next(self) -> deque[T] | None:
        interactive, bulk = self._entries["interactive"], self._entries["bulk"]
        if self._urgent:
            return self._urgent
        if interactive and bulk:
            now = self._clock()
            if self._passed_over_since is None:
                self._passed_over_since = now
            if now - self._passed_over_since < self._aging:
                return interactive
        if bulk:
            self._passed_over_since = None
            return bulk
        return interactive or None
