"""Keeps one engine alive: starts it, watches it, kills it when it hangs or answers wrongly, starts the next."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import structlog

from embed_service.engine.protocol import Header
from embed_service.models.spec import ModelSpec, Role
from embed_service.scheduler.dispatcher import Dispatcher
from embed_service.scheduler.engine_state import EngineState
from embed_service.scheduler.link import Engine, OnMessage
from embed_service.settings import Settings
from embed_service.telemetry import metrics

TICK_SECONDS = 0.25
LOADING_HANG_SECONDS = 120.0  # importing CUDA's gigabytes from a cold disk silences the heartbeat
CRASHES_UNTIL_ERROR = 3  # engines that end before they are ready
FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 1.0, 60.0
STOP_SECONDS = 3  # a polite word, then SIGKILL

FAILED_HINTS = {
    "child": "Its log lines above say why; too little memory is the usual cause: choose smaller models.",
    "ray": "The log lines above and those of its box (`docker compose logs ray-worker` there) say why.",
}
ENDS = {
    "hang": "it hung and was killed",
    "stuck": "a micro-batch never came back and it was killed",
    "canary": "it answered its canary wrongly and was killed",
    "refused": "it has other models than are served and was killed",
}
NewEngine = Callable[[OnMessage, Mapping[str, str]], Engine]  # from where its frames go, and its environment

log = structlog.get_logger(__name__)


class Owner(Protocol):
    """Of the supervisor, what a keeper tells and asks."""

    def on_described(self, keeper: Keeper, models: dict[Role, ModelSpec]) -> dict[str, Any] | None:
        """The error, where this engine's models cannot be served beside the other engines'."""

    @property
    def refused(self) -> bool:
        """The models as described cannot be served at all."""

    def on_change(self, *, ended: bool = False) -> None:
        """A keeper opened its slot, closed it, has an error, or its engine `ended`."""


class Keeper:
    """Runs from `start` to `stop`. `is_open` while its engine is given work."""

    def __init__(self, settings: Settings, dispatcher: Dispatcher, owner: Owner, new_engine: NewEngine) -> None:
        self._settings = settings
        self._owner = owner
        self._new_engine = new_engine
        self._task: asyncio.Task[None] | None = None
        self._heartbeat = 0.0
        self._canary_asked = 0.0
        self._canary_passed: dict[Role, float] = {}
        self._kill_cause: str | None = None
        self._environment: Mapping[str, str] = {}
        self.failures = 0  # engines in a row that ended before they were ready
        self.engine: Engine | None = None
        self.models: dict[Role, ModelSpec] = {}  # of the engine that lives
        self.slot = dispatcher.add_slot(self._on_canary)
        self.state = EngineState()
        self.is_open = False

    def start(self, environment: Mapping[str, str]) -> None:
        """Keep an engine alive from now on. `environment`: settings of the engine's own."""
        assert self._task is None, "the engine before is ended first"
        self._environment = environment
        self.failures = 0
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End the engine: a polite word, then SIGKILL."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        if self.engine is not None:
            await self.engine.stop(STOP_SECONDS)

    def forget(self) -> None:
        """After `stop`: nothing is left of the engine but what it owes, which is queued again."""
        self.close()
        self.slot.detach()
        self.engine, self.models = None, {}
        self.state = EngineState(restarts=self.state.restarts, last_end=self.state.last_end, ended=self.state.ended)

    @property
    def healthy(self) -> bool:
        """Loaded, answering, and a canary of every model passed within HEALTH_CANARY_SECONDS."""
        now = time.monotonic()
        return (
            self.is_open
            and now - self._heartbeat < max(self._settings.engine_hang_seconds / 2, 2)
            and all(now - passed <= self._settings.health_canary_seconds for passed in self._canary_passed.values())
        )

    # Lives

    async def _run(self) -> None:
        while True:
            try:
                became_ready = await self._one_life()
            except Exception as error:  # no process to be had, for example: it must show in /health, not end the supervising
                log.exception("engine could not be started")
                became_ready, self.state.last_end = False, f"it could not be started: {error}"
            self.failures = failures = 0 if became_ready else self.failures + 1
            if failures >= CRASHES_UNTIL_ERROR and self.state.error is None:
                self.fail(
                    {
                        "code": "engine_failed",
                        "message": f"The engine ended {failures} times before it was ready ({self.state.last_end}). "
                        + FAILED_HINTS[self._settings.engines],
                        "retryable": True,
                    }
                )
            self.state.restarts += 1
            self._owner.on_change(ended=True)
            if failures:
                await asyncio.sleep(min(FIRST_RETRY_SECONDS * 2 ** (failures - 1), LAST_RETRY_SECONDS))

    async def _one_life(self) -> bool:
        """From spawn to the end of one engine. True if it became ready."""
        self._kill_cause = None
        became_ready = False
        self.engine = engine = self._new_engine(self.on_message, self._environment)
        self._heartbeat = time.monotonic()
        await engine.start()
        last_tick = time.monotonic()
        while not engine.ended.done():
            await asyncio.wait([engine.ended], timeout=TICK_SECONDS)
            now = time.monotonic()
            if now - last_tick > 10 * TICK_SECONDS:
                # This process itself was stopped or starved: the engine's silence is not its own fault.
                self._heartbeat = now
            last_tick = now
            became_ready = became_ready or self.is_open
            self.watch(engine, now)
            self._owner.on_change()
        status = engine.ended.result()
        self.close()
        again = self.slot.detach()
        cause = self._kill_cause or ("failed" if self.state.error and not became_ready else "exited")
        self.state.last_end, self.state.ended = self._describe_end(status), time.monotonic()
        self.models = {}
        if self.state.error is None:
            self.state.phase = "starting"
        metrics.engine_restarts.labels(cause).inc()
        log.warning("engine ended", cause=cause, how=self.state.last_end, node=engine.node, requeued_sequences=again)
        return became_ready

    def watch(self, engine: Engine, now: float) -> None:
        """Kill the engine where it is silent, stuck, or (from its next canary) wrong."""
        settings = self._settings
        hang = settings.engine_hang_seconds if self.is_open else max(settings.engine_hang_seconds, LOADING_HANG_SECONDS)
        if now - self._heartbeat > hang:
            self._kill(engine, "hang")
        elif self.slot.head_seconds > settings.request_deadline_seconds:
            self._kill(engine, "stuck")
        elif self.is_open and now - self._canary_asked > settings.health_canary_seconds / 3:
            self._canary_asked = now
            self.slot.request_canaries()

    def _kill(self, engine: Engine, cause: str) -> None:
        if self._kill_cause is None:
            self._kill_cause = cause
            self.close()
            log.error("engine killed", cause=cause, pid=engine.pid, node=engine.node)
            engine.kill()

    def _describe_end(self, status: int | str) -> str:
        if self._kill_cause is not None:
            return ENDS[self._kill_cause]
        if isinstance(status, str):
            return status
        if status < 0:
            name = signal.Signals(-status).name
            return f"killed by {name}" + (", most likely for want of memory" if status == -signal.SIGKILL else "")
        return f"it exited with status {status}"

    # Messages

    def on_message(self, header: Header, body: bytes) -> None:
        """One frame of the engine."""
        self._heartbeat = time.monotonic()
        kind = header["type"]
        self.state.memory = header.get("memory", self.state.memory)
        if kind == "started":
            self.slot.on_started(header)
        elif kind == "result":
            self.slot.on_result(header, body)
        elif kind == "phase":
            self._on_phase(header)
        elif kind == "described":
            self._on_described({role: ModelSpec.from_wire(fields) for role, fields in header["models"].items()})
        elif kind == "ready":
            self._on_ready(header)
        elif kind == "failed":
            error = {key: header[key] for key in ("code", "message", "retryable")}
            log.error("engine cannot serve", **error)
            self.fail(error)

    def _on_phase(self, header: Header) -> None:
        state = self.state
        if header["phase"] != state.phase:
            log.info("engine phase", phase=header["phase"])
        state.phase, state.detail = header["phase"], header.get("detail", "")
        if state.phase == "downloading":
            state.error = None  # both models were located, so what ended an earlier start is mended
            done, total = header["done_bytes"], header["total_bytes"]
            # Another total is an engine that counts what is on the disk, one model after the other: no byte came for that.
            if not state.total_bytes or (total == state.total_bytes and done > state.done_bytes):
                state.progressed = time.monotonic()
            state.done_bytes, state.total_bytes = done, total

    def _on_described(self, models: dict[Role, ModelSpec]) -> None:
        self.models = models
        self.state.error = None
        self.state.done_bytes = self.state.total_bytes = 0
        error = self._owner.on_described(self, models)
        if error is not None and self.engine is not None:
            log.error("engine refused", node=self.engine.node, **error)
            self.models = {}
            self.fail(error)
            self._kill(self.engine, "refused")

    def _on_ready(self, header: Header) -> None:
        assert self.engine is not None
        state = self.state
        state.device, state.dtype = header["device"], header["dtype"]
        state.cuda_available, state.executor = header["cuda_available"], header["executor"]
        state.attention = header.get("attention")
        state.shares_prefixes = header.get("shares_prefixes", False)
        state.phase = "canary"
        self._canary_passed = {}
        computed_on = (state.device, state.dtype, state.attention, state.executor)
        self.slot.attach(self.engine, self.models, computed_on)
        self._canary_asked = time.monotonic()
        self.slot.request_canaries()

    def _on_canary(self, role: Role, ok: bool) -> None:
        if not ok:
            if self.engine is not None:
                self._kill(self.engine, "canary")
            return
        self._canary_passed[role] = time.monotonic()
        served = {r for r, spec in self.models.items() if spec.kind != "cosine"}
        well = self._kill_cause is None and not self._owner.refused
        if not self.is_open and well and served <= set(self._canary_passed):
            self.state.phase, self.state.error, self.state.ready_at = "ready", None, time.time()
            self.is_open = True
            self._owner.on_change()
            self.slot.open()
            log.info("ready", device=self.state.device, dtype=self.state.dtype, executor=self.state.executor)

    def close(self) -> None:
        """No more work for this engine."""
        if self.is_open:
            self.is_open = False
            self.slot.close()
            self._owner.on_change()

    def fail(self, error: dict[str, Any]) -> None:
        """This engine cannot serve until a later start succeeds. `error`: code, message, retryable."""
        self.state.error = error
        self._owner.on_change()
