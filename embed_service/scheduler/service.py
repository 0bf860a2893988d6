"""The door through which routes reach the models: readiness, tokenisers, computing, health."""

from __future__ import annotations

import asyncio
import time
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import structlog

from embed_service.engine.sequences import Int32
from embed_service.errors import ModelError, Unavailable
from embed_service.models.fingerprint import computing_fingerprint, embedding_fingerprint
from embed_service.models.spec import ModelSpec, Role
from embed_service.scheduler.admission import Admission
from embed_service.scheduler.cache import Caching, ResultCache, keys_of
from embed_service.scheduler.health import describe_progress, health_body
from embed_service.scheduler.lanes import Lanes
from embed_service.scheduler.ray_link import new_engines
from embed_service.scheduler.supervisor import MODEL_CHANGED, Supervisor, Unloaded
from embed_service.scheduler.work import Float32, Job, Lane
from embed_service.settings import Settings
from embed_service.telemetry import metrics
from embed_service.text.tokens import TextTokenizer

log = structlog.get_logger(__name__)

LARGE_TOKENS = 65_536  # from here on hashing the ids takes part of a millisecond
MEGABYTE = 1_000_000


@dataclass(frozen=True)
class ServedModel:
    """A model whose files are on disk and whose tokeniser is loaded."""

    spec: ModelSpec
    tokenizer: TextTokenizer

    @cached_property
    def fingerprint(self) -> str:
        """Of what decides the row of given token ids."""
        return computing_fingerprint(self.spec)


@dataclass(frozen=True, eq=False)
class Computed:
    """Rows float32 [n, columns] in the order asked for; seconds in the queue and in the engine, 0 where all rows were known."""

    rows: Float32
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0


def models_environment(settings: Settings) -> dict[str, str]:
    """The models as an engine's environment has them; empty is unset."""
    return {name.upper(): getattr(settings, name) or "" for name in ("embed_model", "rerank_model", "embed_revision", "rerank_revision")}


class Service:
    """Created once by `app.create_app`; lives on `app.state.service`. `settings` name the models that are served, or that load."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._started = time.monotonic()
        self._lanes = Lanes()
        self._supervisor = Supervisor(settings, self._lanes, self._on_described, new_engines(settings))
        self.admission = Admission(settings, self._supervisor)
        self._served: dict[Role, ServedModel] = {}
        self._described: dict[Role, ModelSpec] = {}
        self._loading: asyncio.Task[None] | None = None
        self._fingerprint: str | None = None
        self._cache = ResultCache(round(settings.result_cache_mb * MEGABYTE))

    async def start(self) -> None:
        """Spawn the engine and begin supervising. Returns at once."""
        await self._supervisor.start(models_environment(self.settings))

    async def stop(self) -> None:
        """Stop the engine."""
        await self._supervisor.stop()

    @property
    def engine(self) -> Supervisor:
        """Its state, for those who only look."""
        return self._supervisor

    @property
    def queued_tokens(self) -> int:
        return self._lanes.queued_tokens

    async def unload(self, phase: Unloaded) -> None:
        """End the engine; its process is gone when this returns. The door is held (`admission`), and nobody is inside."""
        await self._supervisor.unload(phase)

    async def load(self, settings: Settings) -> None:
        """After `unload`: start an engine with the models that `settings` name. Returns at once."""
        self.settings = settings
        await self._supervisor.start(models_environment(settings))

    async def loaded(self) -> None:
        """Wait for the tokenizers of what was described last."""
        if self._loading is not None:
            await asyncio.shield(self._loading)

    def admitted(self) -> AbstractAsyncContextManager[None]:
        """Around all that a request does with the models: `wait_ready`, tokenising, `compute`."""
        return self.admission.admitted()

    def _on_described(self, specs: dict[Role, ModelSpec]) -> None:
        self._described = specs
        self._cache.clear()  # another engine: other models, or the one before was ended because it computed wrongly
        for role, served in list(self._served.items()):
            spec = specs.get(role)
            if spec is None or served.fingerprint != computing_fingerprint(spec):  # its token ids would mean nothing to these models
                del self._served[role]
        self._loading = asyncio.create_task(self._load_tokenizers(specs))

    async def _load_tokenizers(self, specs: dict[Role, ModelSpec]) -> None:
        try:
            for role, spec in specs.items():
                if role not in self._served:
                    tokenizer = await asyncio.to_thread(TextTokenizer.load, spec)
                    if self._described is not specs:  # another task loads those of what was described meanwhile
                        return
                    self._served[role] = ServedModel(spec, tokenizer)
        except ModelError as error:
            log.error("tokenizer cannot be used", code=error.code, message=error.message)
            self._supervisor.refuse({"code": error.code, "message": error.message, "retryable": error.retryable})
            return
        self._fingerprint = embedding_fingerprint(specs["embed"], self.settings.prompt_policy)
        log.info("models described", **{role: f"{spec.id}@{spec.revision}" for role, spec in specs.items()}, fingerprint=self._fingerprint)
        if not specs["embed"].recognised:
            log.warning("architecture not recognised: it runs padded on sentence-transformers", architecture=specs["embed"].architecture)

    async def wait_ready(self, role: Role) -> ServedModel:
        """The model of `role`, waiting up to LOAD_WAIT_SECONDS. Raises Unavailable (503) with the cause."""
        supervisor = self._supervisor
        if not supervisor.ready.is_set() or role not in self._served:
            try:
                async with asyncio.timeout(self.settings.load_wait_seconds), supervisor.changed:
                    await supervisor.changed.wait_for(lambda: supervisor.ready.is_set() or supervisor.state.error is not None)
            except TimeoutError:
                progress = describe_progress(supervisor.state)
                message = f"The models are not ready: {progress}. Come again in a few seconds; GET /health tells how far it is."
                raise Unavailable(message, retry_after_seconds=5, code="loading") from None
            if supervisor.state.error is not None:
                error = supervisor.state.error
                raise Unavailable(error["message"], retry_after_seconds=30, code=error["code"])
            if self._loading is not None:
                await asyncio.shield(self._loading)
            if role not in self._served:  # its tokenizer was refused meanwhile: the error says why
                return await self.wait_ready(role)
        return self._served[role]

    def served(self, role: Role) -> ServedModel | None:
        """The model if its tokeniser is loaded, without waiting."""
        return self._served.get(role)

    async def compute(
        self,
        role: Role,
        sequences: list[Int32],
        second: list[int | None] | None = None,
        prefix: list[int] | None = None,
        *,
        lane: Lane,
        caller: str,
        caching: Caching = "reuse",
        tokenised_by: ServedModel | None = None,
    ) -> Computed:
        """The rows of distinct sequences, after the result cache and the queue. `tokenised_by`: the model whose tokeniser made them.

        Cancelling the awaiting task drops what is still queued. Raises Unavailable (queue full, deadline, engine down, another model is
        served by now), InternalError (a sequence that the model cannot compute).
        """
        model = tokenised_by or self._served.get(role)
        self._check_served(role, model)
        second = second or [None] * len(sequences)
        prefix = prefix or [0] * len(sequences)
        source = self._source(role) if lane == "interactive" and caching != "off" and self._cache.limit else None
        if source is None:
            return await self._queued(role, model, sequences, second, prefix, lane=lane, caller=caller)
        if sum(len(s) for s in sequences) < LARGE_TOKENS:
            keys = keys_of(source, sequences, second)
        else:
            keys = await asyncio.to_thread(keys_of, source, sequences, second)
            self._check_served(role, model)
        known: dict[int, Float32] = {}
        if caching == "reuse" and source == self._source(role) and self._supervisor.ready.is_set():
            known = self._cache.get(role, keys)
        missing = [i for i in range(len(sequences)) if i not in known]
        if not missing:
            return Computed(np.stack([known[i] for i in range(len(sequences))]))
        # A prefix that was common to all is common to those that are left.
        computed = await self._queued(
            role,
            model,
            [sequences[i] for i in missing],
            [second[i] for i in missing],
            [prefix[i] for i in missing],
            lane=lane,
            caller=caller,
        )
        if source == self._source(role):  # else another engine computed some of them
            self._cache.put([keys[i] for i in missing], computed.rows)
        if not known:
            return computed
        rows = np.empty((len(sequences), computed.rows.shape[1]), np.float32)
        rows[missing] = computed.rows
        for index, row in known.items():
            rows[index] = row
        return Computed(rows, computed.queue_seconds, computed.compute_seconds)

    def _check_served(self, role: Role, model: ServedModel | None) -> None:
        """Raises Unavailable where `model` is served no more: its token ids mean something else to what is."""
        if self._served.get(role) is not model:
            raise Unavailable(MODEL_CHANGED, retry_after_seconds=5, code="model_changed")

    def _source(self, role: Role) -> tuple[object, ...] | None:
        """What decides a sequence's row beside its ids; None while nothing is served.

        The engine's number is in it because a canary finds damaged weights only some time after they damaged rows.
        """
        served, state = self._served.get(role), self._supervisor.state
        if served is None:
            return None
        return (role, served.fingerprint, state.device, state.dtype, state.attention, state.executor, state.restarts)

    async def _queued(
        self,
        role: Role,
        model: ServedModel | None,
        sequences: list[Int32],
        second: list[int | None],
        prefix: list[int],
        *,
        lane: Lane,
        caller: str,
    ) -> Computed:
        """Queue sequences and wait for all rows. What the engine does not share is not counted as shared."""
        shared = prefix if self._supervisor.state.shares_prefixes else None
        job = Job(role, lane, caller, sequences, second, asyncio.get_running_loop().create_future(), shared)
        if self._lanes.queued_tokens + job.tokens > self.settings.max_queued_tokens:
            message = f"The queue is full: {self._lanes.queued_tokens} tokens wait (MAX_QUEUED_TOKENS = {self.settings.max_queued_tokens})."
            raise Unavailable(message, retry_after_seconds=5, code="queue_full")
        self._lanes.put(job)
        self._supervisor.dispatcher.pump()
        try:
            async with asyncio.timeout(self.settings.request_deadline_seconds):
                await job.done
        except TimeoutError:
            seconds = self.settings.request_deadline_seconds
            message = f"No answer within REQUEST_DEADLINE_SECONDS = {seconds:g}: {self._lanes.queued_tokens} tokens wait."
            raise Unavailable(message, retry_after_seconds=5, code="deadline") from None
        finally:
            if not job.done.done() or job.done.cancelled():
                self._lanes.drop(job)
                job.done.cancel()
                self._supervisor.dispatcher.pump()
        assert job.rows is not None
        return Computed(job.rows, job.queue_seconds, job.compute_seconds)

    def fingerprint(self) -> str | None:
        """The embedding fingerprint, once the embedding model is described."""
        return self._fingerprint

    def health(self) -> tuple[int, dict[str, Any]]:
        """Status (200 or 503) and body of GET /health."""
        revisions: dict[str, str] = {role: served.spec.revision for role, served in self._served.items()}
        return health_body(self.settings, self._supervisor, self._fingerprint, self._started, revisions)

    def ready_since(self) -> float | None:
        """Since when requests are computed without a break, in seconds since 1970; None while they are not."""
        return self._supervisor.state.ready_at if self._supervisor.ready.is_set() else None

    def memory(self) -> dict[str, int] | None:
        """What the engine said last of its memory (engine/memory.py); nothing while it is not ready.

        None where this machine's memory is not that of the models: on other boxes, or as far as is known without an engine on a GPU.
        """
        state = self._supervisor.state
        if self.settings.engines != "child":
            return None
        if self._supervisor.ready.is_set():
            return state.memory
        return {} if (state.device or self.settings.device) == "cpu" else None

    def queue_facts(self) -> dict[str, Any]:
        """What waits: queued_tokens, the sequences of each lane, and the token budget of each role's next micro-batch."""
        return {
            "queued_tokens": self._lanes.queued_tokens,
            "lanes": {lane: {"queued_sequences": count} for lane, count in self._lanes.queued_sequences.items()},
            "token_budget": self._supervisor.dispatcher.budgets,
        }

    def model_info(self) -> dict[str, str]:
        """Labels of the metric `embed_model_info`."""
        state = self._supervisor.state
        return {
            "embed": self.settings.embed_model, "rerank": self.settings.rerank_model, "device": state.device or "",
            "dtype": state.dtype or "", "fingerprint": self._fingerprint or "", "executor": state.executor or "",
        }  # fmt: skip

    def publish_model_info(self) -> None:
        metrics.model.info(self.model_info())
