"""The outermost layer: request ids, one log line and the metrics of each request."""

from __future__ import annotations

import re
import uuid

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from embed_service.routes.record import RequestRecord
from embed_service.telemetry import metrics
from embed_service.telemetry.history import History
from embed_service.telemetry.logs import get_logger

__all__ = ["ObserveMiddleware"]

SANE_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
QUIET = frozenset({"/health", "/livez", "/metrics", "/stats"})  # probes and the page ask every few seconds
log = get_logger()


class ObserveMiddleware:
    def __init__(self, app: ASGIApp, history: History) -> None:
        self.app = app
        self._history = history

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        record = RequestRecord(given if SANE_ID.fullmatch(given) else uuid.uuid4().hex, scope["method"])
        scope["state"] = {**scope.get("state", {}), "record": record}
        structlog.contextvars.bind_contextvars(request_id=record.id)

        async def note(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = record.id
            await send(message)

        try:
            await self.app(scope, receive, note)
        finally:
            structlog.contextvars.unbind_contextvars("request_id")
            _count(record)
            if record.lane == "interactive" and record.route in metrics.COMPUTE_ROUTES and record.status == 200:
                self._history.searched(record.seconds)


def _count(record: RequestRecord) -> None:
    status = record.status or 500
    metrics.requests.labels(record.route if record.route in metrics.ROUTES else "other", _bounded(status)).inc()
    if record.lane and record.route in metrics.COMPUTE_ROUTES:
        metrics.request_seconds.labels(record.route, record.lane).observe(record.seconds)
    if status == 499:
        metrics.dropped_clients.inc()
    write = log.debug if record.route in QUIET and status in (200, 503) else log.info
    facts = {"lane": record.lane, "items": record.items, "tokens": record.tokens, "truncated": record.truncated}
    write(
        "request",
        method=record.method,
        route=record.route,
        status=status,
        ms=round(record.seconds * 1000, 1),
        request_id=record.id,
        **{name: value for name, value in facts.items() if value},
    )


def _bounded(status: int) -> str:
    """A status as a label; a backend's own status counts as the plain one of its class."""
    if str(status) in metrics.STATUSES:
        return str(status)
    return "200" if status < 400 else "400" if status < 500 else "500"
