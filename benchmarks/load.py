"""Clients over HTTP: each sends its next request when the last is answered (a closed loop)."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence

import httpx
import orjson

from benchmarks.servers import REQUEST_SECONDS, Server

BETWEEN_QUERIES_SECONDS = 0.05


def _client(server: Server) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    headers = {"accept-encoding": "identity", "content-type": "application/json"}
    return httpx.AsyncClient(base_url=server.url, timeout=REQUEST_SECONDS, limits=limits, headers=headers, trust_env=False)


async def post(client: httpx.AsyncClient, path: str, body: bytes) -> bytes:
    answer = await client.post(path, content=body)
    if answer.status_code != 200:
        raise RuntimeError(f"{client.base_url}{path} answered {answer.status_code}: {answer.text[:500]}")
    return answer.content


async def throughput(server: Server, texts: Sequence[str], clients: int, per_request: int) -> float:
    """Seconds that `clients` clients take for all `texts`, `per_request` in each request."""
    bodies = iter([server.embedding_body(part) for part in _batched(texts, per_request)])
    async with _client(server) as client:
        return await _timed(clients, lambda: _drain(client, server.embed_path, bodies))


async def embed(server: Server, texts: Sequence[str]) -> list[list[float]]:
    """The vectors, to see that the contestants do the same work."""
    async with _client(server) as client:
        answer = orjson.loads(await post(client, server.embed_path, server.embedding_body(texts)))
    return [item["embedding"] for item in answer["data"]]


async def rerank(server: Server, query: str, documents: Sequence[str]) -> tuple[float, list[float]]:
    """(seconds, scores in the order of the documents) of one rerank."""
    body = server.rerank_body(query, documents)
    async with _client(server) as client:
        started = time.perf_counter()
        answer = await post(client, server.rerank_path, body)
        seconds = time.perf_counter() - started
    results = sorted(orjson.loads(answer)["results"], key=lambda r: int(r["index"]))
    return seconds, [r["relevance_score"] for r in results]


async def queries(server: Server, texts: Sequence[str], count: int) -> list[float]:
    """Seconds of each of `count` short queries, one after the other, on an idle server."""
    async with _client(server) as client:
        return [await _query(client, server, text) for text in itertools.islice(itertools.cycle(texts), count)]


async def bulk(
    server: Server, texts: Sequence[str], asked: Sequence[str] = (), clients: int = 4, per_request: int = 32
) -> tuple[float, list[float]]:
    """(texts per second, seconds of each query): `clients` clients embed `texts`, while one asks `asked` over and over, if any."""
    bodies = iter([server.embedding_body(part) for part in _batched(texts, per_request)])
    taken: list[float] = []
    async with _client(server) as client:

        async def ask() -> None:
            for text in itertools.cycle(asked):
                await asyncio.sleep(BETWEEN_QUERIES_SECONDS)
                taken.append(await _query(client, server, text))

        asking = asyncio.create_task(ask())
        try:
            seconds = await _timed(clients, lambda: _drain(client, server.embed_path, bodies))
            if asking.done():
                asking.result()
            while asked and not taken:  # a server that answers no query before its bulk work is done
                await asyncio.wait([asking], timeout=0.05)
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
    return len(texts) / seconds, taken


async def _query(client: httpx.AsyncClient, server: Server, text: str) -> float:
    started = time.perf_counter()
    await post(client, server.embed_path, server.embedding_body([text], urgent=True))
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
