"""Keeps the engines alive, each by a keeper of its own, and says what they are together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import structlog

from embed_service.errors import Unavailable
from embed_service.models.fingerprint import computing_fingerprint
from embed_service.models.spec import ModelSpec, Role
from embed_service.scheduler.dispatcher import Dispatcher
from embed_service.scheduler.engine_state import EngineState, together
from embed_service.scheduler.keeper import Keeper, NewEngine
from embed_service.scheduler.lanes import Lanes
from embed_service.scheduler.link import ChildEngine
from embed_service.settings import Settings
from embed_service.telemetry import metrics

MODEL_CHANGED = "The model's files on the box were replaced while this request waited. Try again in a few seconds."
Unloaded = Literal["paused", "idle", "starting"]  # the phase while there is no engine on purpose; starting: others come at once

log = structlog.get_logger(__name__)


class Supervisor:
    """Runs from `start` to `stop`. `ready` is set while work can be computed; `on_described(specs)` is called when models are on disk.

    In between `unload` ends the engines on purpose and `start` begins others, with the models that their environment names.
    `new_engines` has one function for each engine that is to be kept alive: it makes that engine's next link.
    """

    def __init__(
        self,
        settings: Settings,
        lanes: Lanes,
        on_described: Callable[[dict[Role, ModelSpec]], None],
        new_engines: Sequence[NewEngine] = (ChildEngine,),
    ) -> None:
        self._lanes = lanes
        self._on_described = on_described
        self._models: dict[Role, ModelSpec] = {}  # described first since `start`, or last where there is one engine
        self._told_error: dict[str, Any] | None = None  # as those who wait know it
        self._telling: set[asyncio.Task[None]] = set()
        self.refused = False
        self.dispatcher = Dispatcher(settings, lanes)
        self.keepers = [Keeper(settings, self.dispatcher, self, new_engine) for new_engine in new_engines]
        self.ready = asyncio.Event()
        self.changed = asyncio.Condition()  # notified when an engine becomes ready or ends, or none can be had for good

    async def start(self, environment: Mapping[str, str] | None = None) -> None:
        """Keep the engines alive from now on. `environment`: settings of their own, over those of this process."""
        self.refused, self._models = False, {}
        if self.state.phase in ("paused", "idle"):
            self._enter("starting")
        for keeper in self.keepers:
            keeper.start(environment or {})

    async def stop(self) -> None:
        """End the engines: a polite word, then SIGKILL. What they have not answered is lost."""
        await asyncio.gather(*(keeper.stop() for keeper in self.keepers))

    async def unload(self, phase: Unloaded) -> None:
        """End the engines on purpose. When this returns their processes are gone, and their memory with them; `start` begins others.

        What is still queued or was not answered waits for those.
        """
        for keeper in self.keepers:
            keeper.close()
        await self.stop()
        for keeper in self.keepers:
            keeper.forget()
        self._enter(phase)
        self.on_change()
        log.info("engines unloaded", phase=phase)
        await self.notify()

    def _enter(self, phase: Unloaded) -> None:
        for keeper in self.keepers:
            keeper.state.phase = phase
        for cause in metrics.UNLOADED_CAUSES:
            metrics.unloaded.labels(cause).set(cause == phase)

    @property
    def state(self) -> EngineState:
        return together([keeper.state for keeper in self.keepers])

    @property
    def pid(self) -> int | None:
        engine = self.keepers[0].engine
        return engine.pid if engine else None

    @property
    def failures(self) -> int:
        """Engines in a row that ended before they were ready, where no keeper fared better."""
        return min(keeper.failures for keeper in self.keepers)

    @property
    def healthy(self) -> bool:
        """An engine is loaded, answers, and a canary of every model passed there within HEALTH_CANARY_SECONDS."""
        return any(keeper.healthy for keeper in self.keepers)

    # What keepers tell

    def on_described(self, keeper: Keeper, models: dict[Role, ModelSpec]) -> dict[str, Any] | None:
        """An engine's models are on its disk. What one engine serves, all must: else texts in an index would be worlds apart.

        That holds for engines that have ended too, as what is queued has token ids of their models. A single engine, whose files were
        replaced, is believed, and what is queued fails.
        """
        changed = [role for role, spec in models.items() if role in self._models and _differ(spec, self._models[role])]
        if changed and len(self.keepers) > 1:
            return _other_models(models[changed[0]], self._models[changed[0]])
        for role in changed:
            log.warning("the model's files were replaced", role=role, before=self._models[role].revision, now=models[role].revision)
        self._drop(changed, Unavailable(MODEL_CHANGED, retry_after_seconds=5, code="model_changed"))
        self.refused, self._models = False, models
        self._on_described(models)
        return None

    def on_change(self, *, ended: bool = False) -> None:
        """Tell those who wait, where an engine opened or ended or the last hope is gone."""
        was_ready, error = self.ready.is_set(), self.state.error
        open_engines = sum(keeper.is_open for keeper in self.keepers)
        metrics.ready.set(self.healthy)
        metrics.engine_up.set(open_engines)
        if open_engines:
            self.ready.set()
        else:
            self.ready.clear()
        if was_ready == self.ready.is_set() and error is self._told_error and not ended:
            return
        if error is not None and error is not self._told_error:
            self._drop(("embed", "rerank"), Unavailable(error["message"], retry_after_seconds=30, code=error["code"]))
        self._told_error = error
        task = asyncio.create_task(self.notify())
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    def refuse(self, error: dict[str, Any]) -> None:
        """The models as described cannot be served, however well the engines compute them. Holds until others are described."""
        self.refused = True
        for keeper in self.keepers:
            keeper.close()
            keeper.fail(error)

    def _drop(self, roles: Sequence[Role], why: Unavailable) -> None:
        """What is queued of these roles will not be computed."""
        for job in self._lanes.jobs():
            if job.role in roles:
                self._lanes.drop(job)
                if not job.done.done():  # its client may have left at this very moment
                    job.done.set_exception(why)

    async def notify(self) -> None:
        """Wake those who wait for `changed`."""
        async with self.changed:
            self.changed.notify_all()


def _differ(spec: ModelSpec, other: ModelSpec) -> bool:
    """Wherever their files lie."""
    return computing_fingerprint(spec) != computing_fingerprint(other)


def _other_models(spec: ModelSpec, served: ModelSpec) -> dict[str, Any]:
    """The error of an engine whose model is not that which is served."""
    name = spec.role.upper()
    return {
        "code": "other_models",
        "message": f"A box has {name}_MODEL={spec.id} at revision {spec.revision}, but {served.id} at {served.revision} is served: it is "
        f"given no work. Set {name}_REVISION, or copy the same files to every box; a restart of the service takes new files.",
        "retryable": True,
    }
