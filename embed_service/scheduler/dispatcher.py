"""Moves work between the queue and one engine: micro-batches out, rows in, canaries between.

At the engine there is the micro-batch that computes, and behind it at most one of each lane. Which of those comes next is the engine's
choice (`engine/inbox.py`), made when the device is free: so a search overtakes the bulk micro-batch that stands by.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import structlog

from embed_service.engine.protocol import Header
from embed_service.engine.sequences import Sequences
from embed_service.errors import InternalError, ServiceError, Unavailable
from embed_service.models.spec import ModelSpec, Role
from embed_service.scheduler.budget import TokenBudget
from embed_service.scheduler.device_time import DeviceTime
from embed_service.scheduler.lanes import ALONE_AFTER_DEATHS, Lanes
from embed_service.scheduler.link import ChildEngine
from embed_service.scheduler.work import LANES, Float32, Item, Lane, MicroBatch
from embed_service.settings import Settings
from embed_service.telemetry import metrics

CANARY_TOKENS = 16
# Far above bf16's noise on one and the same input, far below another model's answer. Of an answer above 1 it is a part: one step of
# bf16 between 8 and 16, where a reranker's logits lie, is 0.0625.
CANARY_TOLERANCE = 0.05

log = structlog.get_logger(__name__)


@dataclass(eq=False)
class Canary:
    """A fixed sequence with a known answer."""

    id: int
    role: Role
    sequences: Sequences
    lane: Lane = "interactive"


@dataclass(eq=False)
class _Suspect:
    """A micro-batch with rows that are not finite, held until a canary tells whether the engine or the input is to blame."""

    batch: MicroBatch
    rows: Float32
    compute_seconds: float


class Dispatcher:
    """One engine at a time is attached. `on_canary(ok)` reports each canary's verdict."""

    def __init__(self, settings: Settings, lanes: Lanes, on_canary: Callable[[Role, bool], None]) -> None:
        self._settings = settings
        self._lanes = lanes
        self._on_canary = on_canary
        self._engine: ChildEngine | None = None
        self._ids = itertools.count(1)
        self._in_flight: dict[int, MicroBatch | Canary] = {}
        self._standing_by: dict[Lane, int] = {}  # ids of what was sent and has not started
        self._computing: int | None = None
        self._device_time = DeviceTime()
        self._suspects: list[_Suspect] = []
        self._canaries_due: dict[Role, Canary] = {}
        self._expected: dict[Role, Float32] = {}
        self._expected_of: object = None
        self._head_since = 0.0
        self._open = False
        self._condemned = False  # a canary failed: nothing that this engine still says counts
        self._vocabulary: dict[Role, int] = {}
        self.budgets: dict[Role, TokenBudget] = {
            role: TokenBudget(settings.max_batch_tokens, settings.target_batch_ms / 1000) for role in ("embed", "rerank")
        }

    # The engine's life

    def attach(self, engine: ChildEngine, models: dict[Role, ModelSpec], computed_on: tuple[str | None, ...]) -> None:
        """The engine's models are loaded. Only canaries go out before `open`. `computed_on`: device, precision and attention."""
        self._engine, self._condemned = engine, False
        self._device_time.reset()
        # Other weights or another precision (DEVICE=auto after the GPU is lost, DTYPE=auto measured anew) have answers of their own.
        answers_of = (computed_on, {role: (spec.id, spec.revision) for role, spec in models.items()})
        if answers_of != self._expected_of:
            self._expected, self._expected_of = {}, answers_of
        self._vocabulary = {role: spec.vocabulary for role, spec in models.items() if spec.kind != "cosine"}

    def open(self) -> None:
        """The engine's canaries passed: let work out."""
        self._open = True
        self.pump()

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
        self._lanes.put_back(again)
        self._in_flight.clear()
        self._standing_by.clear()
        self._computing = None
        self._suspects.clear()
        self._canaries_due.clear()
        metrics.requeued_sequences.inc(len(again))
        return len(again)

    def _count_death(self, item: Item) -> None:
        deaths = item.job.deaths.get(item.index, 0) + 1
        item.job.deaths[item.index] = deaths
        if deaths > ALONE_AFTER_DEATHS and not item.job.done.done():
            self._fail(item, _incomputable(f"Input {item.index} ended the engine {deaths} times."))

    @property
    def head_seconds(self) -> float:
        """How long the micro-batch that computes has been computing, or how long none has although one was sent; 0 when none was."""
        return time.monotonic() - self._head_since if self._in_flight else 0.0

    @property
    def idle(self) -> bool:
        return not self._in_flight and not self._suspects and not self._lanes

    # Out

    def request_canaries(self) -> None:
        """Send one canary per loaded model before any other work, unless one is under way."""
        for role, vocabulary in self._vocabulary.items():
            under_way = any(isinstance(b, Canary) and b.role == role for b in self._in_flight.values())
            if not under_way and role not in self._canaries_due:
                # Any valid ids do: the answer is compared with the same ids' answer at start.
                ids = (np.arange(CANARY_TOKENS) * 7919 + 101) % vocabulary
                self._canaries_due[role] = Canary(next(self._ids), role, Sequences.of([ids.astype(np.int32)]))
        self.pump()

    def pump(self) -> None:
        """Send what fits. Call whenever work or room may have appeared."""
        if self._engine is not None and not self._condemned:
            for lane in LANES:
                if lane not in self._standing_by and (batch := self._next(lane)):
                    self._send(self._engine, batch)
        metrics.queued_tokens.set(self._lanes.queued_tokens)
        for lane, count in self._lanes.queued_sequences.items():
            metrics.queued_sequences.labels(lane).set(count)

    def _send(self, engine: ChildEngine, batch: MicroBatch | Canary) -> None:
        if isinstance(batch, Canary):
            sequences, careful = batch.sequences, False
        else:
            # What was at an engine that died may be what ended it: this time it must be certain which one computes.
            sequences, careful = batch.to_sequences(), any(item.index in item.job.deaths for item in batch.items)
        if not self._in_flight:
            self._head_since = time.monotonic()
        self._in_flight[batch.id] = batch
        self._standing_by[batch.lane] = batch.id
        header = {"type": "run", "id": batch.id, "role": batch.role, "lane": batch.lane, "count": len(sequences), "careful": careful}
        if isinstance(batch, Canary):
            header["canary"] = True
        engine.send(header, sequences.to_bytes())

    def _next(self, lane: Lane) -> MicroBatch | Canary | None:
        if self._canaries_due and lane == "interactive":
            return self._canaries_due.pop(next(iter(self._canaries_due)))
        if not self._open:
            return None
        taken = self._lanes.take(lane, lambda role: self.budgets[role].tokens, self._settings.max_batch_size)
        if taken is None:
            return None
        role, items = taken
        now = time.monotonic()
        for item in items:
            if item.job.started is None:
                item.job.started = now
                item.job.queue_seconds = now - item.job.created
                metrics.queue_seconds.labels(item.job.lane).observe(item.job.queue_seconds)
        return MicroBatch(next(self._ids), role, lane, items)

    # In

    def on_started(self, header: Header) -> None:
        """The device begins with a micro-batch: there is room behind it for the next of its lane."""
        batch = self._in_flight.get(header["id"])
        if self._condemned or batch is None or self._standing_by.get(batch.lane) != batch.id:
            return
        del self._standing_by[batch.lane]
        self._computing, self._head_since = batch.id, time.monotonic()
        self.pump()

    def on_result(self, header: Header, body: bytes) -> None:
        """Rows float32 [rows, columns] of one micro-batch."""
        if self._condemned:
            return  # it stays in flight, and the next engine computes it again
        batch = self._in_flight.pop(header["id"], None)
        if batch is None:
            return
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
                self._fail(batch.items[index], Unavailable(text, retry_after_seconds=5, code="out_of_memory"))
            good = [n for n in range(len(batch.items)) if n not in failed]
            part = MicroBatch(batch.id, batch.role, batch.lane, [batch.items[n] for n in good])
            if np.isfinite(rows[good]).all():
                self._deliver(part, rows[good], header["compute_seconds"])
            else:
                self._suspects.append(_Suspect(part, rows[good], header["compute_seconds"]))
                self.request_canaries()
        self.pump()

    def _account(self, batch: MicroBatch, header: Header) -> None:
        seconds, computed, padded = header["compute_seconds"], header["computed_tokens"], header["padded_tokens"]
        budget = self.budgets[batch.role]
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
        ok = bool(np.isfinite(rows).all())
        if ok:
            # The first engine's answer is the measure for all later ones that load the same weights in the same precision.
            expected = self._expected.setdefault(canary.role, rows.copy())
            ok = rows.shape == expected.shape and bool(
                (np.abs(rows - expected) <= CANARY_TOLERANCE * np.maximum(1, np.abs(expected))).all()
            )
        suspects = [s for s in self._suspects if s.batch.role == canary.role]
        if ok:
            for suspect in suspects:
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
            self._fail(items[n], _incomputable(f"The model's answer for input {items[n].index} is not a number."))
        good = np.flatnonzero(finite)
        self._deliver(MicroBatch(batch.id, role, batch.lane, [items[n] for n in good]), suspect.rows[good], suspect.compute_seconds)

    def _deliver(self, batch: MicroBatch, rows: Float32, compute_seconds: float) -> None:
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

    def _fail(self, item: Item, error: ServiceError) -> None:
        if not item.job.done.done():
            self._lanes.drop(item.job)
            item.job.done.set_exception(error)


def _incomputable(message: str) -> InternalError:
    return InternalError(message, code="computation_failed")
