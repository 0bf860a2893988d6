"""Counts compute requests in flight and holds new ones while the process drains."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from embed_service.errors import Unavailable

__all__ = ["GATED", "GateMiddleware"]

GATED = frozenset({"/v1/embeddings", "/v1/rerank", "/v1/score", "/v1/completions", "/v1/chat/completions"})


class GateMiddleware:
    """`app.state.in_flight` is how many are inside. While `app.state.draining` is set a new one waits until `app.state.drained` is set and
    then gets 503: a client that waited that long finds the next process listening."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in GATED:
            await self.app(scope, receive, send)
            return
        state = scope["app"].state
        if state.draining.is_set():
            await state.drained.wait()
            raise Unavailable("The service is restarting. Try again in a second.", retry_after_seconds=1, code="restarting")
        state.in_flight += 1
        try:
            await self.app(scope, receive, send)
        finally:
            state.in_flight -= 1
