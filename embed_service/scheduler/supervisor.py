"""Keeps the engines alive, each by a keeper of its own, and says what they are together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from embed_service.errors import Unavailable
from embed_service.models.fingerprint import computing_fingerprint
from embed_service.models.spec import ModelSpec, Role
from embed_service.scheduler.dispatcher import Dispatcher
from embed_service.scheduler.engine_state import EngineState, together
from embed_service.scheduler.keeper import Keeper
from embed_service.scheduler.lanes import Lanes
from embed_service.scheduler.link import ChildEngine, Engine, OnMessage
from embed_service.settings import Settings
from embed_service.telemetry import metrics

log = structlog.get_logger(__name__)


class Supervisor:
    """Runs from `start` to `stop`. `ready` is set while work can be computed; `on_described(specs)` is called when models are on disk.

    `new_engines` has one function for each engine that is to be kept alive: it makes that engine's next link.
    """

    def __init__(
        self,
        settings: Settings,
        lanes: Lanes,
        on_described: Callable[[dict[Role, ModelSpec]], None],
        new_engines: Sequence[Callable[[OnMessage], Engine]] = (ChildEngine,),
    ) -> None:
        self._lanes = lanes
        self._on_described = on_described
        self._told_error: dict[str, Any] | None = None  # as those who wait know it
        self._telling: set[asyncio.Task[None]] = set()
        self.refused = False
        self.dispatcher = Dispatcher(settings, lanes)
        self.keepers = [Keeper(settings, self.dispatcher, self, new_engine) for new_engine in new_engines]
        self.ready = asyncio.Event()
        self.changed = asyncio.Condition()  # notified when an engine becomes ready or none can be for good

    async def start(self) -> None:
        for keeper in self.keepers:
            keeper.start()

    async def stop(self) -> None:
        """End the engines: a polite word, then SIGKILL."""
        await asyncio.gather(*(keeper.stop() for keeper in self.keepers))

    @property
    def state(self) -> EngineState:
        return together([keeper.state for keeper in self.keepers])

    @property
    def pid(self) -> int | None:
        engine = self.keepers[0].engine
        return engine.pid if engine else None

    @property
    def healthy(self) -> bool:
        """An engine is loaded, answers, and a canary of every model passed there within HEALTH_CANARY_SECONDS."""
        return any(keeper.healthy for keeper in self.keepers)

    # What keepers tell

    def on_described(self, keeper: Keeper, models: dict[Role, ModelSpec]) -> dict[str, Any] | None:
        """An engine's models are on its disk. What one engine serves, all must: else texts in an index would be worlds apart."""
        for other in self.keepers:
            if other is not keeper and other.models and (error := _differ(models, other.models)):
                return error
        self.refused = False
        self._on_described(models)
        return None

    def on_change(self) -> None:
        """Tell those who wait, where an engine opened or the last hope is gone."""
        was_ready, error = self.ready.is_set(), self.state.error
        open_engines = sum(keeper.is_open for keeper in self.keepers)
        metrics.ready.set(self.healthy)
        metrics.engine_up.set(open_engines)
        if open_engines:
            self.ready.set()
        else:
            self.ready.clear()
        if was_ready == self.ready.is_set() and error is self._told_error:
            return
        self._told_error = error
        if error is not None:
            self._drop_all(error)
        task = asyncio.create_task(self._tell())
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    def refuse(self, error: dict[str, Any]) -> None:
        """The models as described cannot be served, however well the engines compute them. Holds until others are described."""
        self.refused = True
        for keeper in self.keepers:
            keeper.close()
            keeper.fail(error)

    def _drop_all(self, error: dict[str, Any]) -> None:
        """Nothing can be served until a later start succeeds."""
        for job in self._lanes.jobs():
            self._lanes.drop(job)
            if not job.done.done():  # its client may have left at this very moment
                job.done.set_exception(Unavailable(error["message"], retry_after_seconds=30, code=error["code"]))

    async def _tell(self) -> None:
        async with self.changed:
            self.changed.notify_all()


def _differ(models: dict[Role, ModelSpec], served: dict[Role, ModelSpec]) -> dict[str, Any] | None:
    """The error of an engine whose `models` are not those that are `served`, wherever their files lie; None where they are."""
    for role, spec in models.items():
        other = served.get(role)
        if other is not None and computing_fingerprint(spec) != computing_fingerprint(other):
            return {
                "code": "other_models",
                "message": f"A box has {role.upper()}_MODEL={spec.id} at revision {spec.revision}, the others have {other.id} at "
                f"{other.revision}: it is given no work. Set {role.upper()}_REVISION, or copy the same files to every box.",
                "retryable": True,
            }
    return None
