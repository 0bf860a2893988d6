"""A client that goes away stops costing compute."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

from embed_service.errors import Unavailable
from embed_service.routes.errors import ClientGone

__all__ = ["while_connected"]

T = TypeVar("T")

# The scheduler has the same deadline from the moment of queueing and knows more to say; with it, waiting for models and tokenising must
# still be over before clients give up.
GRACE_SECONDS = 5.0


async def while_connected(request: Request, work: Coroutine[Any, Any, T], deadline_seconds: float | None = None) -> T:
    """The result of `work`, which is cancelled when the client disconnects first (ClientGone) or at the deadline (Unavailable).

    The body must have been read.
    """
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, timeout=deadline_seconds and deadline_seconds + GRACE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise ClientGone
        message = f"No answer within REQUEST_DEADLINE_SECONDS = {deadline_seconds:g}. Try again, or send fewer texts."
        raise Unavailable(message, retry_after_seconds=5, code="deadline")
    finally:
        for other in (task, gone):
            other.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
