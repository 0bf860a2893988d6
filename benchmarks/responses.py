"""Size and time of one large answer: 32 vectors of 2,560 dimensions, as Qwen3-Embedding-4B gives to a client that indexes."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
from starlette.requests import Request

from benchmarks.results import OURS, Results
from embed_service.routes.serialise import embedding_values, json_answer

TEXTS, DIMENSIONS = 32, 2_560
REPEATS = 15
GZIP_MIN_BYTES = 16_384  # the setting's default


ANSWER = f"An answer of {TEXTS} × {DIMENSIONS:,} numbers"
BYTES_JSON, BYTES_BASE64, LOOP = "float, size", "base64, size", "float, longest hold of the event loop"
PYTHON, ORJSON = "Python floats, json.dumps", "Python floats, orjson"
Answer = Callable[[], Awaitable[bytes]]


def measure(results: Results) -> None:
    """This service's own functions beside two usual ways to write the same answer, which hold the event loop until they are done."""
    rows = np.random.default_rng(0).standard_normal((TEXTS, DIMENSIONS)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)

    def ours(encoding: str, compressed: bool) -> Answer:
        settings = SimpleNamespace(gzip_min_bytes=GZIP_MIN_BYTES)
        app = SimpleNamespace(state=SimpleNamespace(settings=settings))
        accept = [(b"accept-encoding", b"gzip")] if compressed else []
        request = Request({"type": "http", "headers": accept, "app": app})

        async def write() -> bytes:
            body = _body(embedding_values(rows, encoding))
            return bytes((await json_answer(request, body, {}, TEXTS * DIMENSIONS)).body)

        return write

    async def python() -> bytes:
        return json.dumps(_body(rows.tolist())).encode()

    async def fast() -> bytes:
        return orjson.dumps(_body(rows.tolist()))

    forms: list[tuple[str, str, Answer]] = [
        (f"{encoding}{', gzip' if compressed else ''}", OURS, ours(encoding, compressed))
        for encoding in ("float", "base64")
        for compressed in (False, True)
    ]
    for form, contestant, write in (*forms, ("float", PYTHON, python), ("float", ORJSON, fast)):
        results.row(ANSWER, f"{form}, size", "kB", "lower").add(contestant, len(asyncio.run(_once(write))) / 1000)
        results.row(ANSWER, f"{form}, time to write it", "ms", "lower").add(contestant, asyncio.run(_milliseconds(write)))
        results.row(ANSWER, f"{form}, longest hold of the event loop", "ms", "lower").add(contestant, asyncio.run(_held(write)))


def _body(values: list[Any]) -> dict[str, Any]:
    data = [{"object": "embedding", "index": index, "embedding": value} for index, value in enumerate(values)]
    return {"object": "list", "data": data, "model": "m", "usage": {"prompt_tokens": 1, "total_tokens": 1}}


async def _once(write: Answer) -> bytes:
    return await write()


async def _milliseconds(write: Answer) -> float:
    """Median of the time to write the answer."""
    taken = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        await write()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken) * 1000


async def _held(write: Answer) -> float:
    """Median of the longest time for which nothing else ran on the event loop while the answer was written."""
    held = []
    for _ in range(REPEATS):
        writing, longest, last = asyncio.ensure_future(write()), 0.0, time.perf_counter()
        while not writing.done():
            await asyncio.sleep(0)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now
        held.append(longest)
    return statistics.median(held) * 1000
