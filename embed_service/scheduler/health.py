"""The body of GET /health."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from embed_service import __version__
from embed_service.scheduler.engine_state import EngineState
from embed_service.scheduler.keeper import Keeper
from embed_service.scheduler.supervisor import Supervisor
from embed_service.settings import Settings

GIGABYTE = 1e9
PHASES = {
    "starting": "starting the engine",
    "connecting": "connecting to the Ray cluster",
    "placing": "waiting for a box with room for an engine",
    "resolving": "asking the hub which files the models have",
    "loading": "loading weights",
    "warming": "warming up",
    "canary": "checking the first answers",
    "ready": "the engine does not answer",
    "paused": "paused; `qmdctl resume` loads them",
    "idle": "unloaded because nobody asked for anything",
}


def describe_progress(state: EngineState) -> str:
    """The phase as words: "downloading 1.2 of 8.0 GB"."""
    if (state.phase == "downloading" and state.total_bytes) or state.interrupted:
        text = f"downloading {state.done_bytes / GIGABYTE:.2f} of {state.total_bytes / GIGABYTE:.2f} GB"
        return text + (" (stalled: no new byte for a minute; check the network)" if state.stalled else "")
    return PHASES.get(state.phase, state.phase) + (f" ({state.detail})" if state.detail else "")


def _engine(keeper: Keeper) -> dict[str, Any]:
    """One engine's own line."""
    state, engine = keeper.state, keeper.engine
    return {
        "phase": "error" if state.error else "unresponsive" if state.phase == "ready" and not keeper.healthy else state.phase,
        "pid": engine.pid if engine else None,
        "node": engine.node if engine else None,
        "device": state.device,
        "executor": state.executor,
        "attention": state.attention,
        "dtype": state.dtype,
        "micro_batches": keeper.slot.answered,
        "restarts": state.restarts,
        "last_end": state.last_end,
        **({"error": state.error["message"]} if state.error else {}),
        **({"detail": state.detail} if state.detail else {}),
    }


def health_body(
    settings: Settings, supervisor: Supervisor, fingerprint: str | None, started: float, revisions: Mapping[str, str] | None = None
) -> tuple[int, dict[str, Any]]:
    """(status, body): 200 when warm, else 503 with the same fields. The first five fields are the seed server's own.

    "idle" is 200 too: the next request loads the models, so a client that looks here first must not be turned away.
    """
    state = supervisor.state
    healthy = supervisor.healthy
    unloaded = state.phase if state.phase in ("paused", "idle") else None
    status = "ok" if healthy else unloaded or ("error" if state.error else "loading")
    body: dict[str, Any] = {
        "status": status,
        "models": {"embed": settings.embed_model, "rerank": settings.rerank_model},
        "device": state.device or settings.device,
        "cuda_available": state.cuda_available,
        "phase": "error" if status == "error" else "unresponsive" if state.phase == "ready" and not healthy else state.phase,
        "fingerprint": fingerprint,
        "revisions": dict(revisions or {}),
        "prompt_policy": settings.prompt_policy,
        "version": __version__,
        "uptime_seconds": round(time.monotonic() - started, 3),
        "engine": {
            "pid": supervisor.pid,
            "executor": state.executor,
            "attention": state.attention,
            "dtype": state.dtype,
            "restarts": state.restarts,
            "last_end": state.last_end,
        },
        "engines": [_engine(keeper) for keeper in supervisor.keepers],
    }
    if status == "loading" or state.interrupted:
        body["progress"] = {
            "text": describe_progress(state),
            "done_bytes": state.done_bytes,
            "total_bytes": state.total_bytes,
            "stalled": state.stalled,
            "stalled_seconds": round(state.stalled_seconds),
        }
    if status == "error" and state.error is not None:
        body["error"] = state.error["message"]
        body["error_code"] = state.error["code"]
    return 200 if status in ("ok", "idle") else 503, body
