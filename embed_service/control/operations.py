"""Pause, resume, switch, and unloading for idleness: one at a time, none of which loses a request."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import structlog

from embed_service.control import chosen
from embed_service.control.wire import Command, ControlError
from embed_service.scheduler.service import Service
from embed_service.settings import Settings

__all__ = ["Caller", "Operations"]

SWITCH_SECONDS = 1800.0  # a large model from a slow disk; files that are missing should be downloaded before
REPORT_SECONDS = 0.5
LOOK_SECONDS = 0.25

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Caller:
    """Who asked for a command: hears of its progress, and may leave."""

    report: Callable[[dict[str, Any]], None] = lambda line: None
    gone: asyncio.Event = field(default_factory=asyncio.Event)


class Operations:
    """`configured` are the settings that the container was started with; the service's own name the models that it serves now."""

    def __init__(self, service: Service, configured: Settings) -> None:
        self._service = service
        self._configured = configured
        self._door = service.admission
        self._command: str | None = None
        self._changing = asyncio.Lock()

    def describe(self) -> dict[str, Any]:
        """What is served, and whether."""
        service, settings = self._service, self._service.settings
        served = {role: model for role in ("embed", "rerank") if (model := service.served(role))}
        return {
            "state": self._state(),
            "models": {"embed": settings.embed_model, "rerank": settings.rerank_model},
            "revisions": {role: model.spec.revision for role, model in served.items()},
            "fingerprint": service.fingerprint(),
        }

    def _state(self) -> str:
        engine = self._service.engine
        if engine.state.phase in ("paused", "idle"):
            return engine.state.phase
        return "serving" if engine.ready.is_set() else "error" if engine.state.error else "loading"

    async def run(self, command: Command, caller: Caller) -> dict[str, Any]:
        """Carry out a command and describe what is served after it. Raises ControlError."""
        if command.command == "status":
            return {
                **self.describe(),
                "switched": chosen.models_of(self._service.settings) != chosen.models_of(self._configured),
                "under_way": self._command,
                "requests": self._door.inside,
                "queued_tokens": self._service.queued_tokens,
                "unused_seconds": round(self._door.unused_seconds),
                "engine_pid": self._service.engine.pid,
            }
        async with self._alone(command.command):
            if command.command == "pause":
                await self._pause(command, caller)
            elif command.command == "resume":
                await self._resume(command, caller)
            else:
                await self._switch(command, caller)
        return self.describe()

    @asynccontextmanager
    async def _alone(self, command: str) -> AsyncIterator[None]:
        if self._command is not None:
            raise ControlError("busy", f"`{self._command}` is under way. Wait until it is done, or end it where it was started.")
        self._command = command
        try:
            async with self._changing:  # unloading for idleness is over in seconds
                yield
        finally:
            self._command = None

    async def _pause(self, command: Command, caller: Caller) -> None:
        if self._door.held == "paused":
            return
        idle, ended = self._door.held == "idle", False
        await self._door.hold("paused")
        try:
            if not idle:
                await self._drained(caller, _end(command.timeout_seconds))
            ended = True
            await self._service.unload("paused")
        except BaseException:  # whatever it was: nobody may be held for good
            if idle or ended:
                await self._start_again()
            else:
                await self._door.release()
            raise
        log.info("paused")

    async def _resume(self, command: Command, caller: Caller) -> None:
        if self._door.held is not None or self._state() in ("paused", "idle"):
            await self._start_again()
            log.info("resumed")
        await self._watch(
            self._ready(patient=True), caller, _end(command.timeout_seconds), self._phases(caller), "The models go on loading."
        )

    async def _start_again(self) -> None:
        await self._service.load(self._service.settings)
        await self._door.release()

    async def _switch(self, command: Command, caller: Caller) -> None:
        old = self._service.settings
        new = _changed(old, command)
        if chosen.models_of(new) == chosen.models_of(old):
            return
        if self._door.held == "paused":
            raise ControlError("paused", "The service is paused. Resume it first: a switch is only done when the new models answer.")
        end = _end(command.timeout_seconds or SWITCH_SECONDS)
        idle = ended = self._door.held == "idle"
        await self._door.hold("switching")
        try:
            if not idle:
                await self._drained(caller, end)
            ended = True
            await self._service.unload("starting")
            await self._service.load(new)
            undone = "The models before are loaded again."
            await self._watch(self._ready(patient=False), caller, end, self._phases(caller), undone)
            log.info("switched", **chosen.models_of(new))
            self._keep(new, caller)
        except Exception as error:  # whatever it was, an engine is to be there afterwards
            if ended:
                log.warning("switch failed", why=str(error), **chosen.models_of(new))
                await self._go_back(old, error, caller)
            raise
        finally:
            await self._door.release()

    async def _go_back(self, old: Settings, why: Exception, caller: Caller) -> None:
        caller.report({"phase": "going_back", "message": str(why)})
        await self._service.unload("starting")
        await self._service.load(old)
        with contextlib.suppress(ControlError):  # they did not load before either, or no longer do: the state says so
            await self._watch(self._ready(patient=True), Caller(caller.report), None, self._phases(caller), "")

    def _keep(self, new: Settings, caller: Caller) -> None:
        try:
            chosen.keep(self._configured, new)
        except (OSError, RuntimeError) as error:
            log.warning("the switch holds until the next restart only", why=str(error))
            caller.report({"phase": "not_kept", "message": f"The choice could not be written and ends with the next restart: {error}"})

    # Idleness

    async def unload_when_unused(self, seconds: float) -> None:
        """Until cancelled: end the engine when nobody wanted anything for `seconds` (0: never), start one when somebody does."""
        while seconds:
            try:
                await self._look_for_idleness(seconds)
            except Exception:
                log.exception("unloading for idleness failed")
                await asyncio.sleep(LOOK_SECONDS)

    async def _look_for_idleness(self, seconds: float) -> None:
        door, engine = self._door, self._service.engine

        def unused() -> bool:
            return door.held is None and engine.ready.is_set() and door.unused_seconds >= seconds

        if door.held == "idle":
            await door.woken.wait()
            async with self._changing:
                if door.held == "idle":  # else a command was first
                    log.info("loading again: a request came")
                    await self._start_again()
        elif unused():
            async with self._changing:
                if unused():
                    log.info("unloading: nobody asked for anything", minutes=round(seconds / 60, 3))
                    await door.hold("idle")
                    await self._service.unload("idle")
        else:
            if not engine.ready.is_set():
                door.used = time.monotonic()  # idleness begins when they are loaded
            await asyncio.sleep(LOOK_SECONDS)

    # Waiting

    async def _drained(self, caller: Caller, end: float | None) -> None:
        last: dict[str, Any] = {}

        def tell() -> None:
            nonlocal last
            line = {"phase": "draining", "requests": self._door.inside, "queued_tokens": self._service.queued_tokens}
            if line != last and self._door.inside:
                caller.report(line)
                last = line

        await self._watch(self._door.empty(), caller, end, tell, "Requests in flight were not answered in that time; nothing was changed.")

    async def _ready(self, *, patient: bool) -> None:
        """Until the models answer. Raises ControlError when they cannot; unless `patient`, as soon as an engine ended before that."""
        engine = self._service.engine
        async with engine.changed:
            await engine.changed.wait_for(
                lambda: engine.ready.is_set() or engine.state.error is not None or (engine.failures > 0 and not patient)
            )
        await self._service.loaded()
        if (error := engine.state.error) is not None:
            raise ControlError(error["code"], error["message"])
        if not engine.ready.is_set():
            raise ControlError(
                "engine_failed", f"The engine ended before it was ready: {engine.state.last_end}. The service's log says more."
            )

    def _phases(self, caller: Caller) -> Callable[[], None]:
        last: dict[str, Any] = {}

        def tell() -> None:
            nonlocal last
            state = self._service.engine.state
            line: dict[str, Any] = {"phase": state.phase}
            if state.phase == "downloading":
                line |= {"done_bytes": state.done_bytes, "total_bytes": state.total_bytes}
            if line != last:
                caller.report(line)
                last = line

        return tell

    @staticmethod
    async def _watch(
        work: Coroutine[Any, Any, None], caller: Caller, end: float | None, tell: Callable[[], None], consequence: str
    ) -> None:
        """Await `work`, telling how it goes. Raises ControlError (timeout, abandoned; `consequence` is in its message) and cancels it."""
        task, gone = asyncio.create_task(work), asyncio.create_task(caller.gone.wait())
        try:
            while not task.done():
                tell()
                left = REPORT_SECONDS if end is None else min(REPORT_SECONDS, end - time.monotonic())
                if left <= 0:
                    raise ControlError("timeout", f"It took longer than the time allowed. {consequence}".strip())
                if gone.done():
                    raise ControlError("abandoned", f"Whoever asked for it has gone. {consequence}".strip())
                await asyncio.wait({task, gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            task.result()
        finally:
            for other in (task, gone):
                other.cancel()
            await asyncio.gather(task, gone, return_exceptions=True)


def _end(seconds: float | None) -> float | None:
    return None if seconds is None else time.monotonic() + seconds


def _changed(old: Settings, command: Command) -> Settings:
    """The settings after a switch. A model's old revision means nothing for another model."""
    wanted = {name: value for name in chosen.MODEL_SETTINGS if (value := getattr(command, name)) is not None}
    if not wanted:
        raise ControlError("bad_command", "switch: say what to change: --embed-model, --embed-revision, --rerank-model, --rerank-revision.")
    changes: dict[str, str | None] = {}
    for role in ("embed", "rerank"):
        model, revision = f"{role}_model", f"{role}_revision"
        if wanted.get(model, getattr(old, model)) != getattr(old, model):
            changes[revision] = None
    if old.rerank_model == old.embed_model and "rerank_model" not in wanted:  # reranked by cosine, and still will be
        changes |= {name.replace("embed", "rerank"): value for name, value in (changes | wanted).items() if name.startswith("embed")}
    return old.model_copy(update=changes | wanted)
