"""Keeps one engine alive: starts it, watches it, kills it when it hangs or answers wrongly, starts the next."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import structlog

from embed_service.engine.protocol import Header
from embed_service.errors import Unavailable
from embed_service.models.spec import ModelSpec, Role
from embed_service.scheduler.dispatcher import Dispatcher
from embed_service.scheduler.lanes import Lanes
from embed_service.scheduler.link import ChildEngine
from embed_service.settings import Settings
from embed_service.telemetry import metrics

TICK_SECONDS = 0.25
LOADING_HANG_SECONDS = 120.0  # importing CUDA's gigabytes from a cold disk silences the heartbeat
STALL_SECONDS = 60  # a download without a new byte for so long is called stalled
CRASHES_UNTIL_ERROR = 3  # engines that end before they are ready
FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 1.0, 60.0
STOP_SECONDS = 3  # a polite word, then SIGKILL

Unloaded = Literal["paused", "idle", "starting"]  # the phase while there is no engine on purpose; starting: another one comes at once

log = structlog.get_logger(__name__)


@dataclass
class EngineState:
    """What is known of the engine now; /health is made from it."""

    phase: str = "starting"
    done_bytes: int = 0
    total_bytes: int = 0
    progressed: float = field(default_factory=time.monotonic)
    error: dict[str, Any] | None = None  # {code, message, retryable}
    device: str | None = None
    dtype: str | None = None
    cuda_available: bool = False
    executor: str | None = None
    attention: str | None = None
    shares_prefixes: bool = False
    restarts: int = 0
    last_end: str | None = None
    ready_at: float | None = None  # seconds since 1970
    memory: dict[str, int] = field(default_factory=dict)  # see engine/memory.py; the last that was said

    @property
    def interrupted(self) -> bool:
        """The network broke in the middle of a download, which goes on by itself, over as many engines as it takes."""
        return self.error is not None and self.error["code"] == "offline" and self.total_bytes > 0

    @property
    def stalled_seconds(self) -> float:
        """Since the last new byte of a download; 0 in other phases."""
        return time.monotonic() - self.progressed if self.phase == "downloading" or self.interrupted else 0.0

    @property
    def stalled(self) -> bool:
        return self.stalled_seconds > STALL_SECONDS


class Supervisor:
    """Runs from `start` to `stop`. `ready` is set while work can be computed; `on_described(specs)` is called when models are on disk.

    In between `unload` ends the engine on purpose and `start` begins another one, with the models that its environment names.
    """

    def __init__(self, settings: Settings, lanes: Lanes, on_described: Callable[[dict[Role, ModelSpec]], None]) -> None:
        self._settings = settings
        self._lanes = lanes
        self._on_described = on_described
        self._engine: ChildEngine | None = None
        self._task: asyncio.Task[None] | None = None
        self._heartbeat = 0.0
        self._canary_asked = 0.0
        self._canary_passed: dict[Role, float] = {}
        self._kill_cause: str | None = None
        self._models: dict[Role, ModelSpec] = {}
        self._refused = False
        self._environment: dict[str, str] = {}
        self.failures = 0  # engines in a row that ended before they were ready
        self.dispatcher = Dispatcher(settings, lanes, self._on_canary)
        self.state = EngineState()
        self.ready = asyncio.Event()
        self.changed = asyncio.Condition()  # notified when the engine becomes ready, ends or fails for good

    async def start(self, environment: Mapping[str, str] | None = None) -> None:
        """Keep an engine alive from now on. `environment`: settings of the engine's own, over those of this process."""
        assert self._task is None, "the engine before is ended first"
        self._environment = dict(environment or {})
        self.failures, self._refused = 0, False
        if self.state.phase in ("paused", "idle"):
            self._enter("starting")
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End the engine: a polite word, then SIGKILL. What it has not answered is lost."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        if self._engine is not None:
            await self._engine.stop(STOP_SECONDS)

    def _enter(self, phase: Unloaded) -> None:
        self.state.phase = phase
        for cause in metrics.UNLOADED_CAUSES:
            metrics.unloaded.labels(cause).set(cause == phase)

    async def unload(self, phase: Unloaded) -> None:
        """End the engine on purpose. When this returns its process is gone, and its memory with it; `start` begins another one.

        What is still queued or was not answered waits for that one.
        """
        self.ready.clear()
        await self.stop()
        self._engine = None
        self._detach()
        self.state = EngineState(restarts=self.state.restarts, last_end=self.state.last_end)
        self._enter(phase)
        log.info("engine unloaded", phase=phase)
        await self.notify()

    @property
    def pid(self) -> int | None:
        return self._engine.pid if self._engine else None

    @property
    def healthy(self) -> bool:
        """Loaded, answering, and a canary of every model passed within HEALTH_CANARY_SECONDS."""
        now = time.monotonic()
        return (
            self.ready.is_set()
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
                await self._set_error(
                    {
                        "code": "engine_failed",
                        "message": f"The engine ended {failures} times before it was ready ({self.state.last_end}). "
                        "Its log lines above say why; too little memory is the usual cause: choose smaller models.",
                        "retryable": True,
                    }
                )
            self.state.restarts += 1
            await self.notify()
            if failures:
                await asyncio.sleep(min(FIRST_RETRY_SECONDS * 2 ** (failures - 1), LAST_RETRY_SECONDS))

    async def _one_life(self) -> bool:
        """From spawn to the end of one engine. True if it became ready."""
        self._kill_cause = None
        became_ready = False
        if self.state.error is None:
            self.state.phase = "starting"
        engine = ChildEngine(self._on_message, self._environment)
        self._engine = engine
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
            became_ready = became_ready or self.ready.is_set()
            self._watch(engine, now)
            metrics.ready.set(self.healthy)
        status = engine.ended.result()
        again = self._detach()
        cause = self._kill_cause or ("failed" if self.state.error and not became_ready else "exited")
        self.state.last_end = self._describe_end(status)
        metrics.engine_restarts.labels(cause).inc()
        log.warning("engine ended", cause=cause, how=self.state.last_end, requeued_sequences=again)
        return became_ready

    def _detach(self) -> int:
        """The engine is gone. How many sequences wait for the next."""
        self.ready.clear()
        metrics.ready.set(False)
        metrics.engine_up.set(False)
        return self.dispatcher.detach()

    def _watch(self, engine: ChildEngine, now: float) -> None:
        settings = self._settings
        hang = settings.engine_hang_seconds if self.ready.is_set() else max(settings.engine_hang_seconds, LOADING_HANG_SECONDS)
        if now - self._heartbeat > hang:
            self._kill(engine, "hang")
        elif self.dispatcher.head_seconds > settings.request_deadline_seconds:
            self._kill(engine, "stuck")
        elif self.ready.is_set() and now - self._canary_asked > settings.health_canary_seconds / 3:
            self._canary_asked = now
            self.dispatcher.request_canaries()

    def _kill(self, engine: ChildEngine, cause: str) -> None:
        if self._kill_cause is None:
            self._kill_cause = cause
            self.ready.clear()
            log.error("engine killed", cause=cause, pid=engine.pid)
            engine.kill()

    def _describe_end(self, status: int) -> str:
        if self._kill_cause is not None:
            return {"hang": "it hung and was killed", "stuck": "a micro-batch never came back and it was killed"}.get(
                self._kill_cause, "it answered its canary wrongly and was killed"
            )
        if status < 0:
            name = signal.Signals(-status).name
            return f"killed by {name}" + (", most likely for want of memory" if status == -signal.SIGKILL else "")
        return f"it exited with status {status}"

    # Messages

    def _on_message(self, header: Header, body: bytes) -> None:
        self._heartbeat = time.monotonic()
        kind = header["type"]
        self.state.memory = header.get("memory", self.state.memory)
        if kind == "started":
            self.dispatcher.on_started(header)
        elif kind == "result":
            self.dispatcher.on_result(header, body)
        elif kind == "phase":
            self._on_phase(header)
        elif kind == "described":
            self._models = {role: ModelSpec.from_wire(fields) for role, fields in header["models"].items()}
            self.state.error, self._refused = None, False
            self.state.done_bytes = self.state.total_bytes = 0
            self._on_described(self._models)
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
        state.phase = header["phase"]
        if state.phase == "downloading":
            state.error = None  # both models were located, so what ended an earlier start is mended
            done, total = header["done_bytes"], header["total_bytes"]
            # Another total is an engine that counts what is on the disk, one model after the other: no byte came for that.
            if not state.total_bytes or (total == state.total_bytes and done > state.done_bytes):
                state.progressed = time.monotonic()
            state.done_bytes, state.total_bytes = done, total

    def _on_ready(self, header: Header) -> None:
        assert self._engine is not None
        state = self.state
        state.device, state.dtype = header["device"], header["dtype"]
        state.cuda_available, state.executor = header["cuda_available"], header["executor"]
        state.attention = header.get("attention")
        state.shares_prefixes = header.get("shares_prefixes", False)
        state.phase = "canary"
        metrics.engine_up.set(True)
        self._canary_passed = {}
        computed_on = (state.device, state.dtype, state.attention, state.executor)
        self.dispatcher.attach(self._engine, self._models, computed_on)
        self._canary_asked = time.monotonic()
        self.dispatcher.request_canaries()

    def _on_canary(self, role: Role, ok: bool) -> None:
        if not ok:
            if self._engine is not None:
                self._kill(self._engine, "canary")
            return
        self._canary_passed[role] = time.monotonic()
        served = {r for r, spec in self._models.items() if spec.kind != "cosine"}
        well = self._kill_cause is None and not self._refused
        if not self.ready.is_set() and well and served <= set(self._canary_passed):
            self.state.phase, self.state.error, self.state.ready_at = "ready", None, time.time()
            self.ready.set()
            self.dispatcher.open()
            log.info("ready", device=self.state.device, dtype=self.state.dtype, executor=self.state.executor)
            self._notified = asyncio.create_task(self.notify())

    def fail(self, error: dict[str, Any]) -> None:
        """Nothing can be served until a later start succeeds: tell those who wait. `error`: code, message, retryable."""
        self._failed = asyncio.create_task(self._set_error(error))

    def refuse(self, error: dict[str, Any]) -> None:
        """The models as described cannot be served, however well the engine computes them. Holds until others are described."""
        self._refused = True
        self.ready.clear()
        self.fail(error)

    async def _set_error(self, error: dict[str, Any]) -> None:
        self.state.error = error
        for job in self._lanes.jobs():
            self._lanes.drop(job)
            if not job.done.done():  # its client may have left at this very moment
                job.done.set_exception(Unavailable(error["message"], retry_after_seconds=30, code=error["code"]))
        await self.notify()

    async def notify(self) -> None:
        """Wake those who wait for `changed`."""
        async with self.changed:
            self.changed.notify_all()
