"""What is measured, contestant after contestant within each round, so that a noisy minute meets all of them."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import load
from benchmarks.plan import Cell, Clock, Plan
from benchmarks.results import LIBRARY, Results
from benchmarks.servers import Infinity, Ours, SentenceTransformers, Server
from benchmarks.texts import QUERIES

Say = Callable[[str], None]


@dataclass
class Work:
    """The same for everyone: texts with their token counts as the models cut them, and the models' folders."""

    texts: list[str]
    tokens: list[int]
    embed: Path
    rerank: Path


def measure(dtype: str, plan: Plan, clock: Clock, work: Work, results: Results, say: Say) -> None:
    """Everything in one precision. The servers run side by side, only one of them has work at a time."""
    with ExitStack() as stack:
        servers = _start_servers(dtype, plan, work, results, say, stack)
        library = SentenceTransformers(work.embed, work.rerank, dtype)
        stack.enter_context(library)
        results.row(f"Start-up, {dtype}", "until ready", "s", "lower").add(library.name, library.wait_ready())
        _agree(dtype, work, servers, library, results, say)
        _embed(dtype, plan, clock, work, servers, library, results, say)
        _rerank(dtype, plan, clock, work, servers, library, results, say)
        _queries(dtype, plan, work, servers, results, say)
        for contestant in (*servers, library):
            megabytes, kind = contestant.memory_mb()
            results.row("Memory", f"{dtype}, after the load ({kind}, all processes)", "MB", "lower").add(contestant.name, megabytes)


def _start_servers(dtype: str, plan: Plan, work: Work, results: Results, say: Say, stack: ExitStack) -> list[Server]:
    kinds: list[type[Ours] | type[Infinity]] = [Ours, *([Infinity] if Infinity.installed() else [])]
    section = f"Start-up, {dtype}"
    for last in (*[False] * (plan.starts - 1), True):
        kept: list[Server] = []
        for kind in kinds:
            say(f"{dtype}: starting {kind.name}")
            server = kind(work.embed, work.rerank, dtype)
            with ExitStack() as once:
                once.enter_context(server)
                answering, ready = server.wait_ready()
                if last:
                    stack.push(once.pop_all())
                    kept.append(server)
            results.row(section, "until its first answer", "s", "lower").add(server.name, answering)
            results.row(section, "until ready", "s", "lower").add(server.name, ready)
    return kept


def _agree(dtype: str, work: Work, servers: Sequence[Server], library: SentenceTransformers, results: Results, say: Say) -> None:
    """The contestants do the same work, or the comparison means nothing. Also their warm-up."""
    say(f"{dtype}: comparing answers")
    documents = work.texts[:8]
    expected = np.array(library.ask(call="encode", texts=documents, batch=8)["rows"])
    ranks = np.array(library.ask(call="rerank", query=QUERIES[0], documents=documents)["scores"])
    for server in servers:
        rows = np.array(asyncio.run(load.embed(server, documents)))
        cosines = (rows * expected).sum(1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(expected, axis=1)
        results.agreement[f"{server.name}, {dtype}: smallest cosine to sentence-transformers"] = round(float(cosines.min()), 6)
        scores = np.array(asyncio.run(load.rerank(server, QUERIES[0], documents))[1])
        results.agreement[f"{server.name}, {dtype}: largest difference of a rerank score"] = round(float(np.abs(scores - ranks).max()), 6)
        asyncio.run(load.throughput(server, work.texts[:32], 4, 8))
    library.ask(call="encode", texts=work.texts[:32], batch=32)


def _embed(
    dtype: str, plan: Plan, clock: Clock, work: Work, servers: Sequence[Server], library: SentenceTransformers, results: Results, say: Say
) -> None:
    def turn(cell: Cell, number: int) -> None:
        texts = work.texts[: cell.texts]
        section = f"Embeddings over HTTP, {dtype} (clients × texts per request)"
        row = results.row(section, cell.name, "texts/s", "higher", statistics.mean(work.tokens[: cell.texts]))
        for server in servers:
            say(f"{dtype}: round {number + 1}, {cell.name} texts, {server.name}")
            row.add(server.name, cell.texts / asyncio.run(load.throughput(server, texts, cell.clients, cell.per_request)))
        if cell.clients == 1:  # in process there are no clients
            say(f"{dtype}: round {number + 1}, {cell.name} texts, {library.name}")
            row.add(library.name, cell.texts / _encode(library, texts, cell.per_request))

    for number in clock.rounds(plan.rounds, 0.6):
        for cell in plan.cells:
            if not cell.once:
                turn(cell, number)
    for cell in plan.cells:
        if cell.once:
            turn(cell, 0)


def _encode(library: SentenceTransformers, texts: Sequence[str], per_request: int) -> float:
    parts = [texts[start : start + per_request] for start in range(0, len(texts), per_request)]
    return sum(float(library.ask(call="encode", texts=part, batch=32)["seconds"]) for part in parts)


def _rerank(
    dtype: str, plan: Plan, clock: Clock, work: Work, servers: Sequence[Server], library: SentenceTransformers, results: Results, say: Say
) -> None:
    row = results.row(f"Rerank, {dtype}", f"{plan.documents} documents", "s", "lower")
    for number in clock.rounds(plan.rounds, 0.5):
        # Each round has documents of its own: a server that remembers answers would win by that alone.
        start = (number * plan.documents) % (len(work.texts) - plan.documents + 1)
        query, documents = QUERIES[number % len(QUERIES)], work.texts[start : start + plan.documents]
        for server in servers:
            say(f"{dtype}: round {number + 1}, rerank, {server.name}")
            row.add(server.name, asyncio.run(load.rerank(server, query, documents))[0])
        say(f"{dtype}: round {number + 1}, rerank, {library.name}")
        row.add(LIBRARY, float(library.ask(call="rerank", query=query, documents=documents)["seconds"]))


def _queries(dtype: str, plan: Plan, work: Work, servers: Sequence[Server], results: Results, say: Say) -> None:
    section = f"A short query, {dtype}"
    for server in servers:
        say(f"{dtype}: short queries, {server.name}")
        idle = asyncio.run(load.queries(server, QUERIES, plan.idle_queries))
        bulk = work.texts[:512]
        busy = asyncio.run(load.queries_while_busy(server, QUERIES, bulk, plan.busy_seconds))
        for what, query in (("idle", idle), ("while 4 clients × 32 texts are embedded", busy)):
            for name, share in (("p50", 0.5), ("p95", 0.95)):
                value = float(np.quantile(query.seconds, share)) * 1000
                results.row(section, f"{what}, {name}", "ms", "lower").add(server.name, value)
        results.row(section, "queries answered meanwhile", "", "higher").add(server.name, len(busy.seconds))
        if busy.bulk_texts_per_second is not None:
            results.row(section, "bulk meanwhile", "texts/s", "higher").add(server.name, busy.bulk_texts_per_second)
