"""The door for requests: which wait, for how long, and how many are inside.

Who is inside has token ids of the models that are served, so these change only while nobody is: whoever wants to change them holds the
door, waits until those inside are answered, and opens it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

from embed_service.errors import Unavailable
from embed_service.scheduler.health import describe_progress
from embed_service.scheduler.supervisor import Supervisor
from embed_service.settings import Settings

__all__ = ["Admission", "Hold"]

Hold = Literal["paused", "idle", "switching"]
PAUSED = (
    "The service is paused: its owner freed the device for something else. `qmdctl resume` on the box starts it again "
    "(without qmdctl: `python -m embed_service control resume`)."
)


class Admission:
    """`held` says why nobody is let in, None that nothing but the engine's own state keeps requests waiting.

    `woken` is cleared by a hold for idleness, and set by a request that comes during it and by whatever ends it.
    """

    def __init__(self, settings: Settings, supervisor: Supervisor) -> None:
        self._settings = settings
        self._supervisor = supervisor
        self._returning = False
        self._leaving = False
        self.held: Hold | None = None
        self.inside = 0
        self.waiting = 0
        self.used = time.monotonic()  # when a request came or was answered last, or the models became ready
        self.woken = asyncio.Event()

    @asynccontextmanager
    async def admitted(self) -> AsyncIterator[None]:
        """Waits at the door; the models stay what they are until the end of the block. Raises Unavailable (503) with the cause."""
        self.used = time.monotonic()
        self.waiting += 1
        try:
            await self._enter()
        finally:
            self.waiting -= 1
        try:
            yield
        finally:
            self.inside -= 1
            self.used = time.monotonic()
            if self.held is not None and not self.inside:
                await self._supervisor.notify()

    async def _enter(self) -> None:
        began = time.monotonic()
        async with self._supervisor.changed:
            while not self._open:
                if self.held == "idle":
                    self.woken.set()
                left = began + self._patience - time.monotonic()
                if left <= 0:
                    raise self._refusal()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await self._supervisor.changed.wait()
            error = self._supervisor.state.error
            if error is not None and not self._supervisor.ready.is_set():
                raise Unavailable(error["message"], retry_after_seconds=30, code=error["code"])
            self._returning = False
            self.inside += 1

    @property
    def unused_seconds(self) -> float:
        """Since somebody was inside or waited."""
        return 0.0 if self.inside or self.waiting else time.monotonic() - self.used

    @property
    def _open(self) -> bool:
        return self.held is None and (self._supervisor.ready.is_set() or self._supervisor.state.error is not None)

    @property
    def _patience(self) -> float:
        """Seconds that a request waits. Models that are known to come are waited for as long as clients do: to a rerank that is answered
        503 some give zero scores, and keep them."""
        if self._leaving and self.held == "paused":
            return 0.0  # nobody will resume this process
        if self.held in ("idle", "switching") or (self.held is None and self._returning):
            return self._settings.request_deadline_seconds
        return self._settings.load_wait_seconds

    def _refusal(self) -> Unavailable:
        if self._leaving:
            return Unavailable("The service is restarting. Try again in a second.", retry_after_seconds=1, code="restarting")
        if self.held == "paused":
            return Unavailable(PAUSED, retry_after_seconds=30, code="paused")
        progress = describe_progress(self._supervisor.state)
        message = f"The models are not ready: {progress}. Come again in a few seconds; GET /health tells how far it is."
        return Unavailable(message, retry_after_seconds=5, code="loading")

    async def hold(self, why: Hold) -> None:
        """Let nobody in from now on; those inside go on."""
        self.held = why
        if why == "idle":
            self.woken.clear()
        else:
            self.woken.set()
        await self._supervisor.notify()

    async def release(self) -> None:
        """Let in again, as soon as the engine is ready."""
        self._returning = not self._supervisor.ready.is_set()
        self.held = None
        self.woken.set()
        self.used = time.monotonic()
        await self._supervisor.notify()

    async def leave(self) -> None:
        """The process ends: who waits for a resume need not wait for it here."""
        self._leaving = True
        await self._supervisor.notify()

    async def empty(self) -> None:
        """Wait until nobody is inside. Only under a hold."""
        async with self._supervisor.changed:
            await self._supervisor.changed.wait_for(lambda: not self.inside)
