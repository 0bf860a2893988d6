"""Size and time of one large answer: 32 vectors of 2,560 dimensions, as Qwen3-Embedding-4B gives to a client that indexes."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
from starlette.requests import Request

from embed_service.routes.serialise import embedding_values, json_answer

TEXTS, DIMENSIONS = 32, 2_560
REPEATS = 15
GZIP_MIN_BYTES = 16_384  # the setting's default


def measure() -> list[dict[str, Any]]:
    """Rows of {form, bytes, ms}: this service's own functions first, then two usual ways to write the same answer."""
    rows = np.random.default_rng(0).standard_normal((TEXTS, DIMENSIONS)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)

    def ours(encoding: str, compressed: bool) -> Callable[[], bytes]:
        settings = SimpleNamespace(gzip_min_bytes=GZIP_MIN_BYTES)
        app = SimpleNamespace(state=SimpleNamespace(settings=settings))
        accept = [(b"accept-encoding", b"gzip")] if compressed else []
        request = Request({"type": "http", "headers": accept, "app": app})

        def write() -> bytes:
            body = _body(embedding_values(rows, encoding))
            return bytes(asyncio.run(json_answer(request, body, {}, TEXTS * DIMENSIONS)).body)

        return write

    ways: dict[str, Callable[[], bytes]] = {
        "this service, float": ours("float", False),
        "this service, float, gzip": ours("float", True),
        "this service, base64": ours("base64", False),
        "this service, base64, gzip": ours("base64", True),
        "Python floats, json.dumps": lambda: json.dumps(_body(rows.tolist())).encode(),
        "Python floats, orjson": lambda: orjson.dumps(_body(rows.tolist())),
    }
    return [{"form": form, "bytes": len(write()), "ms": _milliseconds(write)} for form, write in ways.items()]


def _body(values: list[Any]) -> dict[str, Any]:
    data = [{"object": "embedding", "index": index, "embedding": value} for index, value in enumerate(values)]
    return {"object": "list", "data": data, "model": "m", "usage": {"prompt_tokens": 1, "total_tokens": 1}}


def _milliseconds(write: Callable[[], bytes]) -> float:
    taken = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        write()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken) * 1000
