"""Moves work from the queue to the engines: each micro-batch to the one with room that has the least to do."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable

import numpy as np

from embed_service.errors import ServiceError
from embed_service.models.spec import Role
from embed_service.scheduler.canaries import Expectations
from embed_service.scheduler.lanes import Lanes
from embed_service.scheduler.slot import Slot
from embed_service.scheduler.work import LANES, Float32, Item, Lane, MicroBatch
from embed_service.settings import Settings
from embed_service.telemetry import metrics


class Dispatcher:
    """All slots take micro-batches of the same lanes. A slot that joins or leaves concerns no other's work."""

    def __init__(self, settings: Settings, lanes: Lanes) -> None:
        self._settings = settings
        self._lanes = lanes
        self._ids = itertools.count(1)
        self._slots: list[Slot] = []
        self.expectations = Expectations()

    def add_slot(self, on_canary: Callable[[Role, bool], None]) -> Slot:
        """A place for one engine. `on_canary(role, ok)` reports each of its canaries' verdicts."""
        slot = Slot(self._settings, self, on_canary)
        self._slots.append(slot)
        return slot

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is at an engine."""
        return not self._lanes and all(slot.idle for slot in self._slots)

    @property
    def budgets(self) -> dict[Role, int]:
        """Most tokens of the next micro-batch; of several engines, that of the fastest."""
        roles: tuple[Role, ...] = ("embed", "rerank")
        return {role: max((slot.budgets[role].tokens for slot in self._slots), default=0) for role in roles}

    def next_id(self) -> int:
        """Of a micro-batch or canary, over all engines."""
        return next(self._ids)

    # Out

    def pump(self) -> None:
        """Send what fits. Call whenever work or room may have appeared."""
        for slot in self._slots:
            slot.send_canary()
        for lane in LANES:
            while (slot_with_room := self._least_loaded(lane)) and (batch := self._next(lane, slot_with_room)):
                slot_with_room.send(batch)
        metrics.queued_tokens.set(self._lanes.queued_tokens)
        for lane, count in self._lanes.queued_sequences.items():
            metrics.queued_sequences.labels(lane).set(count)

    def _least_loaded(self, lane: Lane) -> Slot | None:
        """Of several idle ones that which was sent something the longest ago, so that all of them stay warm."""
        with_room = [slot for slot in self._slots if slot.has_room(lane)]
        return min(with_room, key=lambda slot: (slot.load, slot.sent_at), default=None)

    def _next(self, lane: Lane, slot: Slot) -> MicroBatch | None:
        taken = self._lanes.take(lane, lambda role: slot.budgets[role].tokens, self._settings.max_batch_size)
        if taken is None:
            return None
        role, items = taken
        now = time.monotonic()
        for item in items:
            if item.job.started is None:
                item.job.started = now
                item.job.queue_seconds = now - item.job.created
                metrics.queue_seconds.labels(item.job.lane).observe(item.job.queue_seconds)
        return MicroBatch(self.next_id(), role, lane, items)

    # In

    def put_back(self, items: Iterable[Item]) -> None:
        """Of an engine that ended: the others take them at once."""
        self._lanes.put_back(items)
        self.pump()

    def deliver(self, batch: MicroBatch, rows: Float32, compute_seconds: float) -> None:
        """Rows float32 [items, columns] to their jobs."""
        for job in {item.job for item in batch.items}:
            job.compute_seconds += compute_seconds
        for item, row in zip(batch.items, rows, strict=True):
            job = item.job
            if job.done.done():
                continue
            if job.rows is None:
                job.rows = np.empty((len(job.sequences), rows.shape[1]), np.float32)
            job.rows[item.index] = row
            job.missing -= 1
            if job.missing == 0:
                job.done.set_result(job.rows)

    def fail(self, item: Item, error: ServiceError) -> None:
        """The item's whole job, as no part of an answer is of use."""
        if not item.job.done.done():
            self._lanes.drop(item.job)
            item.job.done.set_exception(error)
