"""What is noted of one request for its log line, its metrics and its headers. Never a text."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.types import Scope

__all__ = ["RequestRecord", "record_of"]


@dataclass
class RequestRecord:
    """`route` is the canonical path or "other"; seconds are of the server alone."""

    id: str
    method: str
    route: str = "other"
    lane: str | None = None
    items: int = 0
    tokens: int = 0
    truncated: int = 0
    status: int = 0
    started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started


def record_of(request: Request | Scope) -> RequestRecord:
    """The record that the outermost middleware put into the scope."""
    scope = request.scope if isinstance(request, Request) else request
    record: RequestRecord = scope["state"]["record"]
    return record
