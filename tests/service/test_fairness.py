"""What the device computes after what, with an engine that a test steps through. Order is asserted, never time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.service.conftest import metric
from tests.service.gate import Gate
from tests.support.checkpoints import checkpoint
from tests.support.service import ServiceProcess

Gated = Callable[..., Gate]
CHUNKS = [f"chunk {n}: " + "a paragraph of a long notebook that is being indexed " * 2 for n in range(400)]
SEARCH_TOKENS = 5  # [CLS] where is it [SEP]


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as pool:
        yield pool


@pytest.fixture
def gated(breakable: Callable[..., ServiceProcess], tmp_path: Path, pool: ThreadPoolExecutor) -> Iterator[Gated]:
    """`gated(**environment)`: a service behind a gate, shut. Opened at the end, before the pool waits for its requests."""
    gates: list[Gate] = []

    def make(**environment: str) -> Gate:
        gate = Gate(breakable, tmp_path, **{"MAX_BATCH_SIZE": "16", **environment})
        gates.append(gate)
        gate.shut()
        return gate

    yield make
    for gate in gates:
        gate.close()


def embed(client: httpx.Client, texts: list[str], lane: str | None = None) -> httpx.Response:
    headers = {"x-lane": lane} if lane else {}
    return client.post("/v1/embeddings", json={"input": texts, "encoding_format": "base64"}, headers=headers)


def test_a_search_starts_before_the_bulk_that_stands_by(gated: Gated, pool: ThreadPoolExecutor) -> None:
    gate = gated()
    with gate.caller(2) as indexer, gate.caller(3) as searcher:
        bulk = pool.submit(embed, indexer, CHUNKS)
        gate.wait(lambda: len(gate.started()) == 1 and gate.standing_by("bulk") == 1, "one that computes and one that stands by")
        assert metric(gate.service, 'embed_queued_sequences{lane="bulk"}') > 0
        assert len(gate.prepared()) == 2, "the rest waits in the HTTP process"
        for _ in range(3):
            search = pool.submit(embed, searcher, ["where is it"])
            gate.wait(lambda: gate.standing_by("interactive") == 1, "the search at the engine")
            following = gate.step()
            assert (following.lane, following.lengths) == ("interactive", (SEARCH_TOKENS,))
            assert gate.step().lane == "bulk"
            assert search.result().status_code == 200
        assert not bulk.done()
        gate.open()
        assert bulk.result().status_code == 200


def test_bulk_moves_under_unbroken_searches(gated: Gated, pool: ThreadPoolExecutor) -> None:
    """At every step a search stands by, and yet the bulk job ends."""
    gate = gated(BULK_AGING_SECONDS="0.2")
    ended = False

    def searches(number: int) -> int:
        answered = 0
        with gate.caller(10 + number) as client:
            while not ended:
                assert embed(client, ["where is it"]).status_code == 200
                answered += 1
        return answered

    with gate.caller(2) as indexer:
        searching = [pool.submit(searches, n) for n in range(4)]
        gate.wait(lambda: gate.standing_by("interactive"), "searches")
        bulk = pool.submit(embed, indexer, CHUNKS[:100], "bulk")
        gate.wait(lambda: gate.standing_by("bulk"), "the bulk job")
        while not bulk.done():
            gate.wait(lambda: gate.standing_by("interactive") or bulk.done(), "a search that stands by")
            gate.step()
        assert bulk.result().status_code == 200
        assert not any(search.done() for search in searching)
        ended = True
        gate.open()
        assert all(search.result() > 0 for search in searching)
    assert len(gate.started("bulk")) < len(gate.started("interactive"))


def test_two_bulk_callers_take_turns(gated: Gated, pool: ThreadPoolExecutor) -> None:
    gate = gated()
    with gate.caller(2) as first, gate.caller(3) as second:
        long = pool.submit(embed, first, CHUNKS)
        gate.wait(lambda: len(gate.started()) == 1 and gate.standing_by("bulk") == 1, "one that computes and one that stands by")
        short = pool.submit(embed, second, ["a small note"] + [f"{n} other notes" for n in range(20)], "bulk")
        gate.wait(lambda: metric(gate.service, 'embed_queued_sequences{lane="bulk"}') > len(CHUNKS) - 2 * 16, "the second job")
        gate.step()
        steps = 0
        while not short.done() and steps < 4:
            gate.step()
            steps += 1
        gate.wait(short.done, "the short job")
        assert not long.done()
        gate.open()
        assert {job.result().status_code for job in (short, long)} == {200}


def test_a_query_goes_between_the_micro_batches_of_a_rerank(gated: Gated, pool: ThreadPoolExecutor) -> None:
    """Both are interactive, of two callers and two models: behind what computes, one micro-batch of the rerank may stand by, not more."""
    gate = gated(RERANK_MODEL=str(checkpoint("bert-cross-encoder")), MAX_BATCH_SIZE="4")
    documents = [f"document {n}: " + "what the minutes say about the lease " * 5 for n in range(40)]
    with gate.caller(2) as reader, gate.caller(3) as searcher:
        rerank: Future[httpx.Response] = pool.submit(reader.post, "/v1/rerank", json={"query": "the lease", "documents": documents})
        gate.wait(lambda: len(gate.started()) == 1 and gate.standing_by("interactive") == 1, "one that computes and one that stands by")
        waiting = metric(gate.service, 'embed_queued_sequences{lane="interactive"}')
        search = pool.submit(embed, searcher, ["where is it"])
        gate.wait(lambda: metric(gate.service, 'embed_queued_sequences{lane="interactive"}') == waiting + 1, "the query in the queue")
        assert [gate.step().role, gate.step().role] == ["rerank", "embed"]
        gate.open()
        assert (search.result().status_code, rerank.result().status_code) == (200, 200)
