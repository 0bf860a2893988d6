"""GET /stats: what the page at / draws, as JSON."""

from __future__ import annotations

import asyncio
import os
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from embed_service.errors import BadRequest
from embed_service.generation.kv_cache import KvCacheProbe
from embed_service.models.spec import ModelSpec, Role
from embed_service.routes.serialise import json_answer
from embed_service.scheduler.service import Service
from embed_service.telemetry.history import INTERVAL_SECONDS, SAMPLES, History
from embed_service.telemetry.memory import memory_bar

router = APIRouter()
ROLES: tuple[Role, ...] = ("embed", "rerank")
NO_STORE = {"cache-control": "no-store", "x-content-type-options": "nosniff", "cross-origin-resource-policy": "same-origin"}
MOST = 2**53  # what a JSON number holds exactly


@router.get("/stats")
async def stats(request: Request) -> Response:
    """The numbers of the last minutes; with `?after=ID` only the samples since. Raises BadRequest."""
    after = _after(request)
    state = request.app.state
    service: Service = state.service
    history: History = state.history
    probe: KvCacheProbe = state.kv_cache
    if probe.due:  # its answer is for the next request: nobody waits for another server here
        state.asking_kv_cache = asyncio.create_task(probe.ask())
    _, health = service.health()
    engine, known = health["engine"]["pid"], service.memory()
    bar = None if known is None else memory_bar(known, [os.getpid(), *([engine] if engine else [])], probe.last)
    memory = bar and {
        "kind": bar.kind,
        "total_bytes": bar.total,
        "parts": [{"name": name, "bytes": size} for name, size in bar.parts.items()],
        "kv_cache_used": probe.last.used if probe.last and bar.parts.keys() & {"kv_cache", "vllm"} else None,
    }
    served = {role: found.spec for role in ROLES if (found := service.served(role))}
    body = {
        "health": health,
        "started_at": round(state.started_at, 3),
        "ready_since": service.ready_since(),
        "models": {role: _facts(spec) for role, spec in served.items()},
        "generation": state.settings.generation_url is not None,
        "now": {"in_flight": state.in_flight, **service.queue_facts()},
        "search_seconds": asdict(history.latency()),
        "memory": memory,
        "window": {"seconds": SAMPLES * INTERVAL_SECONDS, "interval_seconds": INTERVAL_SECONDS},
        "samples": [asdict(sample) for sample in history.after(after)],
    }
    return await json_answer(request, body, NO_STORE)


def _after(request: Request) -> int:
    values = request.query_params.getlist("after")
    if not values:
        return 0
    value = values[-1]
    if not (value.isascii() and value.isdigit() and len(value) <= 16 and int(value) < MOST):
        raise BadRequest("after: it must be the id of a sample, a whole number from 0 on.", param="after", code="invalid_type")
    return int(value)


def _facts(spec: ModelSpec) -> dict[str, Any]:
    return {
        "model": spec.id,
        "revision": spec.revision,
        "architecture": spec.architecture,
        "kind": spec.kind,
        "dimensions": spec.dimensions,
        "max_tokens": spec.max_tokens,
    }
