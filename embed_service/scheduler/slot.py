"""One engine's place at the dispatcher: what it has in its hands, and what its answers mean.

At the engine there is the micro-batch that computes, and behind it at most one of each lane. Which of those comes next is the engine's
choice (`engine/inbox.py`), made when the device is free: so a search overtakes the bulk micro-batch that stands by.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from embed_service.engine.protocol import Header
from embed_service.errors import InternalError, ServiceError, Unavailable
from embed_service.models.spec import ModelSpec, Role
from embed_service.scheduler.budget import TokenBudget
from embed_service.scheduler.canaries import Canary, Expectations
from embed_service.scheduler.device_time import DeviceTime
from embed_service.scheduler.lanes import ALONE_AFTER_DEATHS
from embed_service.scheduler.work import Float32, Item, Lane, MicroBatch
from embed_service.settings import Settings
from embed_service.telemetry import metrics


class Sender(Protocol):
    """Of an engine's link, what a slot needs."""

    def send(self, header: Header, body: bytes = b"") -> None: ...


class Queue(Protocol):
    """Of the dispatcher, what a slot needs."""

    expectations: Expectations

    def next_id(self) -> int: ...

    def pump(self) -> None: ...

    def put_back(self, items: Iterable[Item]) -> None: ...

    def deliver(self, batch: MicroBatch, rows: Float32, compute_seconds: float) -> None: ...

    def fail(self, item: Item, error: ServiceError) -> None: ...


@dataclass(eq=False)
class _Suspect:
    """A micro-batch with rows that are not finite, held until a canary tells whether the engine or the input is to blame."""

    batch: MicroBatch
    rows: Float32
    compute_seconds: float


class Slot:
    """One engine at a time is attached. `on_canary(role, ok)` reports each canary's verdict.

    The token budgets are the slot's own, as boxes differ in speed; they outlive its engines.
    """

    def __init__(self, settings: Settings, queue: Queue, on_canary: Callable[[Role, bool], None]) -> None:
        self._queue = queue
        self._on_canary = on_canary
        self._engine: Sender | None = None
        self._in_flight: dict[int, MicroBatch | Canary] = {}
        self._loads: dict[int, float] = {}  # of what is in flight
        self._standing_by: dict[Lane, int] = {}  # ids of what was sent and has not started
        self._computing: int | None = None
        self._device_time = DeviceTime()
        self._suspects: list[_Suspect] = []
        self._canaries_due: dict[Role, Canary] = {}
        self._computed_on: object = None
        self._head_since = 0.0
        self._open = False
        self._condemned = False  # a canary failed: nothing that this engine still says counts
        self._vocabulary: dict[Role, int] = {}
        self.sent_at = 0.0  # time.monotonic() of the last micro-batch
        self.answered = 0  # micro-batches, canaries not counted
        self.budgets: dict[Role, TokenBudget] = {
            role: TokenBudget(settings.max_batch_tokens, settings.target_batch_ms / 1000) for role in ("embed", "rerank")
        }

    # The engine's life

    def attach(self, engine: Sender, models: dict[Role, ModelSpec], computed_on: tuple[str | None, ...]) -> None:
        """The engine's models are loaded. Only canaries go out before `open`. `computed_on`: device, precision and attention."""
        self._engine, self._condemned = engine, False
        self._device_time.reset()
        self._computed_on = (computed_on, tuple((role, spec.id, spec.revision) for role, spec in sorted(models.items())))
        self._vocabulary = {role: spec.vocabulary for role, spec in models.items() if spec.kind != "cosine"}

    def open(self) -> None:
        """The engine's canaries passed: let work out."""
        self._open = True
        self._queue.pump()

    def close(self) -> None:
        """Let no more work out. What is out may be answered yet."""
        self._open = False

    def detach(self) -> int:
        """The engine is gone: queue again what it has not answered. Returns how many sequences that were."""
        self._engine, self._open = None, False
        batches = [b for b in self._in_flight.values() if isinstance(b, MicroBatch)]
        again = [item for suspect in self._suspects for item in suspect.batch.items] + [i for b in batches for i in b.items]
        for item in again:
            item.job.deaths.setdefault(item.index, 0)
        computing = self._in_flight.get(self._computing) if self._computing is not None else None
        if isinstance(computing, MicroBatch):
            for item in computing.items:
                self._count_death(item)
        self._in_flight.clear()
        self._loads.clear()
        self._standing_by.clear()
        self._computing = None
        self._suspects.clear()
        self._canaries_due.clear()
        metrics.requeued_sequences.inc(len(again))
        self._queue.put_back(again)
        return len(again)

    def _count_death(self, item: Item) -> None:
        deaths = item.job.deaths.get(item.index, 0) + 1
        item.job.deaths[item.index] = deaths
        if deaths > ALONE_AFTER_DEATHS and not item.job.done.done():
            self._queue.fail(item, _incomputable(f"Input {item.index} ended the engine {deaths} times."))

    @property
    def head_seconds(self) -> float:
        """How long the micro-batch that computes has been computing, or how long none has although one was sent; 0 when none was."""
        return time.monotonic() - self._head_since if self._in_flight else 0.0

    @property
    def idle(self) -> bool:
        return not self._in_flight and not self._suspects

    @property
    def load(self) -> float:
        """What is in flight, in micro-batches as large as this engine's budget."""
        return sum(self._loads.values())

    # Out

    def request_canaries(self) -> None:
        """Send one canary per loaded model before any other work, unless one is under way."""
        for role, vocabulary in self._vocabulary.items():
            under_way = any(isinstance(b, Canary) and b.role == role for b in self._in_flight.values())
            if not under_way and role not in self._canaries_due:
                self._canaries_due[role] = Canary.of(self._queue.next_id(), role, vocabulary)
        self._queue.pump()

    def send_canary(self) -> None:
        """Send the next canary that is due, where there is room for it."""
        if self._engine is not None and not self._condemned and self._canaries_due and "interactive" not in self._standing_by:
            self.send(self._canaries_due.pop(next(iter(self._canaries_due))))

    def has_room(self, lane: Lane) -> bool:
        """Whether a micro-batch of this lane may be sent."""
        return self._engine is not None and self._open and not self._condemned and lane not in self._standing_by

    def send(self, batch: MicroBatch | Canary) -> None:
        """Send one micro-batch."""
        assert self._engine is not None
        if isinstance(batch, Canary):
            sequences, careful = batch.sequences, False
        else:
            # What was at an engine that died may be what ended it: this time it must be certain which one computes.
            sequences, careful = batch.to_sequences(), any(item.index in item.job.deaths for item in batch.items)
            self._loads[batch.id] = batch.tokens / self.budgets[batch.role].tokens
        self.sent_at = time.monotonic()
        if not self._in_flight:
            self._head_since = self.sent_at
        self._in_flight[batch.id] = batch
        self._standing_by[batch.lane] = batch.id
        header = {"type": "run", "id": batch.id, "role": batch.role, "lane": batch.lane, "count": len(sequences), "careful": careful}
        if isinstance(batch, Canary):
            header["canary"] = True
        self._engine.send(header, sequences.to_bytes())

    # In

    def on_started(self, header: Header) -> None:
        """The device begins with a micro-batch: there is room behind it for the next of its lane."""
        batch = self._in_flight.get(header["id"])
        if self._condemned or batch is None or self._standing_by.get(batch.lane) != batch.id:
            return
        del self._standing_by[batch.lane]
        self._computing, self._head_since = batch.id, time.monotonic()
        self._queue.pump()

    def on_result(self, header: Header, body: bytes) -> None:
        """Rows float32 [rows, columns] of one micro-batch."""
        if self._condemned:
            return  # it stays in flight, and the next engine computes it again
        batch = self._in_flight.pop(header["id"], None)
        if batch is None:
            return
        self._loads.pop(batch.id, None)
        self._head_since = time.monotonic()
        if self._computing == batch.id:
            self._computing = None
        if self._standing_by.get(batch.lane) == batch.id:
            del self._standing_by[batch.lane]
        waiting_since = None if isinstance(batch, Canary) else min(item.job.created for item in batch.items)
        self._device_time.computed(header["started"], header["ended"], waiting_since)
        rows = np.frombuffer(body, np.float32).reshape(header["rows"], header["columns"])
        if isinstance(batch, Canary):
            self._judge(batch, rows)
        else:
            self._account(batch, header)
            failed = {int(index): text for index, text in header.get("failed", {}).items()}
            for index, text in failed.items():
                metrics.failed_rows.labels(batch.role).inc()
                # Another program may have the memory for a moment, and a client that gets 500 for a rerank keeps zero scores for good.
                self._queue.fail(batch.items[index], Unavailable(text, retry_after_seconds=5, code="out_of_memory"))
            good = [n for n in range(len(batch.items)) if n not in failed]
            part = MicroBatch(batch.id, batch.role, batch.lane, [batch.items[n] for n in good])
            if np.isfinite(rows[good]).all():
                self._queue.deliver(part, rows[good], header["compute_seconds"])
            else:
                self._suspects.append(_Suspect(part, rows[good], header["compute_seconds"]))
                self.request_canaries()
        self._queue.pump()

    def _account(self, batch: MicroBatch, header: Header) -> None:
        seconds, computed, padded = header["compute_seconds"], header["computed_tokens"], header["padded_tokens"]
        budget = self.budgets[batch.role]
        self.answered += 1
        if header["oom_splits"]:
            metrics.out_of_memory_splits.inc(header["oom_splits"])
            budget.out_of_memory(batch.tokens)
        else:
            budget.observe(computed, seconds)
        metrics.token_budget.labels(batch.role).set(budget.tokens)
        metrics.compute_seconds.labels(batch.role).observe(seconds)
        metrics.batch_tokens.labels(batch.role).observe(batch.tokens)
        metrics.batch_sequences.labels(batch.role).observe(len(batch.items))
        metrics.computed_tokens.labels(batch.role).inc(computed)
        metrics.padded_tokens.labels(batch.role).inc(padded)
        if padded:
            metrics.padding_efficiency.labels(batch.role).set(computed / padded)

    def _judge(self, canary: Canary, rows: Float32) -> None:
        ok = self._queue.expectations.met(self._computed_on, canary.role, rows)
        if ok:
            for suspect in [s for s in self._suspects if s.batch.role == canary.role]:
                self._suspects.remove(suspect)
                self._acquit(suspect)
        else:
            self._condemned = True
        self._on_canary(canary.role, ok)

    def _acquit(self, suspect: _Suspect) -> None:
        """The engine is well, so the inputs are to blame: fail those, deliver their neighbours."""
        batch, items, role = suspect.batch, suspect.batch.items, suspect.batch.role
        finite = np.isfinite(suspect.rows).all(axis=1)
        for n in np.flatnonzero(~finite):
            metrics.failed_rows.labels(role).inc()
            self._queue.fail(items[n], _incomputable(f"The model's answer for input {items[n].index} is not a number."))
        good = np.flatnonzero(finite)
        self._queue.deliver(MicroBatch(batch.id, role, batch.lane, [items[n] for n in good]), suspect.rows[good], suspect.compute_seconds)


def _incomputable(message: str) -> InternalError:
    return InternalError(message, code="computation_failed")
