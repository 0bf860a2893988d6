"""Moves work between the queue and one engine: micro-batches out, rows in, canaries between.

Two micro-batches are kept at the engine: one computing, one ready behind it.
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
from embed_service.scheduler.lanes import ALONE_AFTER_DEATHS, Lanes
from embed_service.scheduler.link import ChildEngine
from embed_service.scheduler.work import Float32, Item, MicroBatch
from embed_service.settings import Settings
from embed_service.telemetry import metrics

DEPTH = 2  # micro-batches at the engine
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

    @property
    def tokens(self) -> int:
        return len(self.sequences.ids)


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
        computing = next(iter(self._in_flight.values()), None)
        if isinstance(computing, MicroBatch):
            for item in computing.items:
                self._count_death(item)
        again = [item for suspect in self._suspects for item in suspect.batch.items] + [i for b in batches for i in b.items]
        self._lanes.put_back(again)
        self._in_flight.clear()
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
        """How long the micro-batch that computes has been computing; 0 when none is."""
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
        while self._engine is not None and not self._condemned and len(self._in_flight) < DEPTH:
            batch = self._next()
            if batch is None:
                break
            sequences = batch.sequences if isinstance(batch, Canary) else batch.to_sequences()
            if not self._in_flight:
                self._head_since = time.monotonic()
            self._in_flight[batch.id] = batch
            self._engine.send({"type": "run", "id": batch.id, "role": batch.role, "count": len(sequences)}, sequences.to_bytes())
        metrics.queued_tokens.set(self._lanes.queued_tokens)
        for lane, count in self._lanes.queued_sequences.items():
            metrics.queued_sequences.labels(lane).set(count)

    def _next(self) -> MicroBatch | Canary | None:
        if self._canaries_due:
            return self._canaries_due.pop(next(iter(self._canaries_due)))
        if not self._open:
            return None
        taken = self._lanes.take(lambda role: self.budgets[role].tokens, self._settings.max_batch_size)
        if taken is None or not taken[1]:
            return None
        now = time.monotonic()
        for item in taken[1]:
            if item.job.started is None:
                item.job.started = now
                item.job.queue_seconds = now - item.job.created
                metrics.queue_seconds.labels(item.job.lane).observe(item.job.queue_seconds)
        return MicroBatch(next(self._ids), *taken)

    # In

    def on_result(self, header: Header, body: bytes) -> None:
        """Rows float32 [rows, columns] of one micro-batch."""
        if self._condemned:
            return  # it stays in flight, and the next engine computes it again
        batch = self._in_flight.pop(header["id"], None)
        if batch is None:
            return
        self._head_since = time.monotonic()
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
            part = MicroBatch(batch.id, batch.role, [batch.items[n] for n in good])
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
            budget.observe(batch.tokens, seconds)
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
        items, role = suspect.batch.items, suspect.batch.role
        finite = np.isfinite(suspect.rows).all(axis=1)
        for n in np.flatnonzero(~finite):
            metrics.failed_rows.labels(role).inc()
            self._fail(items[n], _incomputable(f"The model's answer for input {items[n].index} is not a number."))
        good = np.flatnonzero(finite)
        self._deliver(MicroBatch(suspect.batch.id, role, [items[n] for n in good]), suspect.rows[good], suspect.compute_seconds)

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
