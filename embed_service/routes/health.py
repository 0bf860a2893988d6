"""GET /health and /livez."""

from __future__ import annotations

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

router = APIRouter()
NO_STORE = {"cache-control": "no-store"}


@router.get("/health")
async def health(request: Request) -> Response:
    """200 while the models answer; otherwise 503 with the phase and its progress, or the cause and its fix."""
    status, body = request.app.state.service.health()
    headers = NO_STORE if status == 200 else {**NO_STORE, "retry-after": "2"}
    return Response(orjson.dumps(body), status, headers, "application/json")


@router.get("/livez")
async def livez(request: Request) -> Response:
    """200 as soon as the process listens, whatever the models do."""
    return Response(b'{"status":"ok"}', 200, NO_STORE, "application/json")
