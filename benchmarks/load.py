"""Clients over HTTP: each sends its next request when the last is answered (a closed loop)."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass

import httpx
import orjson

from benchmarks.servers import REQUEST_SECONDS, Server

BETWEEN_QUERIES_SECONDS = 0.05
QUERIES_WHILE_BUSY_LEAST = 3
LONGEST_BUSY = 3  # times the planned seconds, for a server too slow to answer that many


@dataclass
class Query:
    """`seconds`: of each query; `bulk_texts_per_second`: what the bulk clients got meanwhile."""

    seconds: list[float]
    bulk_texts_per_second: float | None = None


def _client(server: Server) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    headers = {"accept-encoding": "identity", "content-type": "application/json"}
    return httpx.AsyncClient(base_url=server.url, timeout=REQUEST_SECONDS, limits=limits, headers=headers, trust_env=False)


def embedding_body(texts: Sequence[str]) -> bytes:
    return orjson.dumps({"model": "embed", "input": list(texts)})


async def post(client: httpx.AsyncClient, path: str, body: bytes) -> bytes:
    answer = await client.post(path, content=body)
    if answer.status_code != 200:
        raise RuntimeError(f"{client.base_url}{path} answered {answer.status_code}: {answer.text[:500]}")
    return answer.content


async def throughput(server: Server, texts: Sequence[str], clients: int, per_request: int) -> float:
    """Seconds that `clients` clients take for all `texts`, `per_request` in each request."""
    bodies = iter([embedding_body(part) for part in _batched(texts, per_request)])
    async with _client(server) as client:
        return await _timed(clients, lambda: _drain(client, server.embed_path, bodies))


async def embed(server: Server, texts: Sequence[str]) -> list[list[float]]:
    """The vectors, to see that the contestants do the same work."""
    async with _client(server) as client:
        answer = orjson.loads(await post(client, server.embed_path, embedding_body(texts)))
    return [item["embedding"] for item in answer["data"]]


async def rerank(server: Server, query: str, documents: Sequence[str]) -> tuple[float, list[float]]:
    """(seconds, scores in the order of the documents) of one rerank."""
    body = orjson.dumps({"model": "rerank", "query": query, "documents": list(documents)})
    async with _client(server) as client:
        started = time.perf_counter()
        answer = await post(client, server.rerank_path, body)
        seconds = time.perf_counter() - started
    results = sorted(orjson.loads(answer)["results"], key=lambda r: int(r["index"]))
    return seconds, [r["relevance_score"] for r in results]


async def queries(server: Server, texts: Sequence[str], count: int) -> Query:
    """`count` short queries, one after the other, on an idle server."""
    async with _client(server) as client:
        return Query([await _query(client, server, text) for text in itertools.islice(itertools.cycle(texts), count)])


async def queries_while_busy(
    server: Server, texts: Sequence[str], bulk: Sequence[str], seconds: float, clients: int = 4, per_request: int = 32
) -> Query:
    """Short queries for `seconds`, while `clients` clients embed `bulk` over and over."""
    bodies = itertools.cycle([embedding_body(part) for part in _batched(bulk, per_request)])
    finished: list[float] = []  # when each bulk request was answered

    async with _client(server) as client:

        async def load() -> None:
            while True:
                await post(client, server.embed_path, next(bodies))
                finished.append(time.perf_counter())

        loads = [asyncio.create_task(load()) for _ in range(clients)]
        try:
            await asyncio.sleep(1)
            taken: list[float] = []
            started = time.perf_counter()
            for text in itertools.cycle(texts):
                taken.append(await _query(client, server, text))
                spent = time.perf_counter() - started
                if spent >= (seconds if len(taken) >= QUERIES_WHILE_BUSY_LEAST else seconds * LONGEST_BUSY):
                    break
                await asyncio.sleep(BETWEEN_QUERIES_SECONDS)
            end = time.perf_counter()
            for task in loads:
                if task.done():
                    task.result()
        finally:
            for task in loads:
                task.cancel()
            await asyncio.gather(*loads, return_exceptions=True)
    done = sum(started <= moment <= end for moment in finished)
    return Query(taken, done * per_request / (end - started))


async def _query(client: httpx.AsyncClient, server: Server, text: str) -> float:
    started = time.perf_counter()
    await post(client, server.embed_path, embedding_body([text]))
    return time.perf_counter() - started


async def _drain(client: httpx.AsyncClient, path: str, bodies: Iterator[bytes]) -> None:
    for body in bodies:
        await post(client, path, body)


async def _timed(clients: int, work: Callable[[], Awaitable[None]]) -> float:
    started = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(clients)))
    return time.perf_counter() - started


def _batched(texts: Sequence[str], size: int) -> list[Sequence[str]]:
    return [texts[start : start + size] for start in range(0, len(texts), size)]
