"""What is measured, contestant after contestant within each round, so that a noisy minute meets all of them."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from benchmarks import load, models
from benchmarks.plan import Cell, Clock, Plan
from benchmarks.results import OURS, Results
from benchmarks.servers import Contestant, Infinity, Ours, Server, Vllm
from benchmarks.team import Say, Team, started
from benchmarks.texts import QUERIES, chunks
from benchmarks.workers import Forward, SentenceTransformers, Worker

EMBEDDINGS = "Embeddings over HTTP (clients × texts per request)"
QUERY = "A short query"
MEMORY = "Memory"
START = "Start-up"
WHILE_BUSY = "while 4 clients × 32 texts are embedded"
BULK_SHARE = "bulk meanwhile, of its rate alone"
MEMORY_GROWN = "after all texts, times that after the first"
LEAST_COSINE = 0.999  # below it a contestant computes something else; bfloat16 stays above
WARM_TEXTS = 32
MEMORY_WORDS = (20, 60)
URGENT = ("--scheduling-policy", "priority", "--max-num-batched-tokens", "1024")


@dataclass
class Work:
    """The same for everyone: texts with their token counts as the models cut them, and the precision."""

    texts: list[str]
    tokens: list[int]
    dtype: str
    plan: Plan
    clock: Clock
    results: Results
    say: Say


def start_up(work: Work) -> None:
    """Each alone, with both models. vLLM, which serves one model and takes a minute, is not among them."""
    embed, rerank = models.minilm(), models.cross_encoder()

    def made() -> list[Ours | Infinity | SentenceTransformers]:
        infinity = [Infinity(work.dtype, embed=embed, rerank=rerank)] if Infinity.installed() else []
        return [Ours(embed, rerank, work.dtype), *infinity, SentenceTransformers(work.dtype, embed=embed, rerank=rerank)]

    for number in work.clock.rounds(work.plan.starts, 0.05):
        team = Team(contestants := made(), "start-up", work.results, work.say)
        for contestant in contestants:

            def start(contestant: Ours | Infinity | SentenceTransformers = contestant) -> None:
                with contestant:
                    answering, ready = contestant.wait_ready()
                    if isinstance(contestant, Server):
                        work.results.row(START, "until its first answer", "s", "lower").add(contestant.name, answering)
                    work.results.row(START, "until ready", "s", "lower").add(contestant.name, ready)
                    megabytes, kind = contestant.memory_mb()
                    work.results.row(MEMORY, f"both models loaded ({kind}, all processes)", "MB", "lower").add(contestant.name, megabytes)

            team.turn(contestant, f"round {number + 1}", start)


def embeddings(work: Work, parts: Collection[str]) -> None:
    """`parts`: "embeddings" (throughput), "queries" (latency), or both. vLLM has a server of its own for each, with other flags."""
    embed = models.minilm()
    ours = Ours(embed, models.cross_encoder(), work.dtype)
    calm: list[Server] = [ours]  # for throughput
    pressed: list[Server] = [ours]  # for short queries
    if Vllm.installed():
        calm += [Vllm("embed", embed, work.dtype)] if "embeddings" in parts else []
        pressed += [Vllm("embed", embed, work.dtype, *URGENT, label="-priority")] if "queries" in parts else []
    if Infinity.installed():
        infinity = Infinity(work.dtype, embed=embed)
        calm.append(infinity)
        pressed.append(infinity)
    library, forward = SentenceTransformers(work.dtype, embed=embed), Forward(embed, work.dtype)
    members = list(dict.fromkeys([*calm, *pressed]))
    with started([*members, library, *([forward] if "embeddings" in parts else [])], "embeddings", work.results, work.say) as team:
        agree_on_vectors(work, team, library)
        if "embeddings" in parts:
            _throughput(work, team, ours, [*calm, library, forward])
        if "queries" in parts:
            for number in work.clock.rounds(work.plan.rounds, 0.2):
                for server in pressed:
                    team.turn(server, f"queries, round {number + 1}", partial(_query_round, work, server))


def _throughput(work: Work, team: Team, ours: Ours, members: Sequence[Server | Worker]) -> None:
    batch_tokens = 2_048.0

    def turn(member: Server | Worker, cell: Cell) -> None:
        nonlocal batch_tokens
        texts, last = work.texts[: cell.texts], cell is work.plan.cells[-1]
        if isinstance(member, Server):
            before = ours.metrics()
            seconds = asyncio.run(load.throughput(member, texts, cell.clients, cell.per_request))
            if member is ours and last:
                batch_tokens = _engine_figures(work, before, ours.metrics()) or batch_tokens
        elif isinstance(member, SentenceTransformers):
            seconds = _encode(member, texts, cell.per_request)
        else:
            seconds = float(member.ask(call="embed", texts=texts, tokens=batch_tokens)["seconds"])
        row = work.results.row(EMBEDDINGS, cell.name, "texts/s", "higher", statistics.mean(work.tokens[: cell.texts]))
        row.add(member.name, cell.texts / seconds)

    for number in work.clock.rounds(work.plan.rounds, 0.28):
        for cell in work.plan.cells:
            for member in members:
                # In process there are no clients; our own forward stands beside the largest.
                if isinstance(member, SentenceTransformers) and cell.clients > 1:
                    continue
                if isinstance(member, Forward) and cell is not work.plan.cells[-1]:
                    continue
                team.turn(member, f"round {number + 1}, {cell.name} texts", partial(turn, member, cell))


def _engine_figures(work: Work, before: dict[str, float], after: dict[str, float]) -> float | None:
    """Adds how idle the engine was between micro-batches, where the service tells it; returns the mean tokens of a micro-batch."""

    def grown(name: str) -> float:
        return after.get(name, 0) - before.get(name, 0)

    idle, busy = grown("embed_engine_idle_seconds_total"), grown("embed_engine_busy_seconds_total")
    if busy:
        work.results.row(EMBEDDINGS, "8 × 32, engine idle while work waits", "%", "lower").add(OURS, 100 * idle / (idle + busy))
    count = grown('embed_batch_tokens_count{role="embed"}')
    if not count:
        return None
    tokens = grown('embed_batch_tokens_sum{role="embed"}') / count
    work.results.row(EMBEDDINGS, "8 × 32, tokens in a micro-batch", "", "higher").add(OURS, tokens)
    return tokens


def agree_on_vectors(work: Work, team: Team, library: SentenceTransformers) -> None:
    """Contestants that do not do the same work mean nothing beside each other. Also their warm-up."""
    texts = work.texts[:WARM_TEXTS]
    reference = team.reference(library, lambda: library.ask(call="encode", texts=texts, batch=32)["rows"])

    def compare(member: Contestant) -> None:
        if isinstance(member, Server):
            rows = np.array(asyncio.run(load.embed(member, texts[:8])))
            asyncio.run(load.throughput(member, texts, 4, 8))
            asyncio.run(load.queries(member, QUERIES, len(QUERIES)))
        else:
            assert isinstance(member, Forward)
            rows = np.array(member.ask(call="embed", texts=texts, tokens=2_048)["rows"])
        if reference is None:
            return
        expected = np.array(reference)
        cosines = (rows * expected).sum(1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(expected, axis=1)
        least = float(cosines.min())
        compared(work, member, "smallest cosine to sentence-transformers", least, least > LEAST_COSINE)

    for member in team:
        if member is not library:
            team.turn(member, "comparing answers", partial(compare, member))


def compared(work: Work, member: Contestant, what: str, value: float, same: bool) -> None:
    """Notes `value`; a contestant that computes something else takes no further part."""
    work.results.agreement[f"{member.name}: {what}"] = round(value, 6)
    if not same:
        raise RuntimeError(f"it computes something else ({what}: {value:g})")


def _encode(library: SentenceTransformers, texts: Sequence[str], per_request: int) -> float:
    parts = [texts[start : start + per_request] for start in range(0, len(texts), per_request)]
    return sum(float(library.ask(call="encode", texts=part, batch=32)["seconds"]) for part in parts)


def _query_round(work: Work, server: Server) -> None:
    """One short query, idle and beside bulk work, and what the bulk work gets. vLLM is told that the query is urgent."""
    row, bulk = work.results.row, work.texts[: work.plan.bulk_texts]
    idle = asyncio.run(load.queries(server, QUERIES, work.plan.idle_queries))
    alone, _ = asyncio.run(load.bulk(server, bulk))
    meanwhile, busy = asyncio.run(load.bulk(server, bulk, QUERIES))
    for what, seconds in (("idle", idle), (WHILE_BUSY, busy)):
        for name, share in (("p50", 0.5), ("p95", 0.95)):
            row(QUERY, f"{what}, {name}", "ms", "lower").add(server.name, float(np.quantile(seconds, share)) * 1000)
    row(QUERY, "queries answered meanwhile", "", "higher").add(server.name, len(busy))
    row(QUERY, "bulk alone", "texts/s", "higher").add(server.name, alone)
    row(QUERY, "bulk meanwhile", "texts/s", "higher").add(server.name, meanwhile)
    row(QUERY, BULK_SHARE, "×", "higher").add(server.name, meanwhile / alone)


def memory(work: Work) -> None:
    """This service's memory after the first texts and after many more, with its default settings: what grows has a leak."""
    first, most = work.plan.memory
    texts = chunks(most, *MEMORY_WORDS, seed=11)
    ours = Ours(models.minilm(), models.cross_encoder(), work.dtype, RESULT_CACHE_MB="")
    with started([ours], "memory", work.results, work.say):
        read: list[float] = []
        for part, done in ((texts[:first], first), (texts[first:], most)):
            work.say(f"memory: {len(part)} texts, {ours.name}")
            asyncio.run(load.throughput(ours, part, 4, 32))
            megabytes, kind = ours.memory_mb()
            read.append(megabytes)
            work.results.row(MEMORY, f"after {done:,} texts ({kind}, all processes)", "MB", "lower").add(ours.name, megabytes)
    work.results.row(MEMORY, MEMORY_GROWN, "×", "lower").add(ours.name, read[1] / read[0])
