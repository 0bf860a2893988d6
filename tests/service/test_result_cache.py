"""The result cache over HTTP: what the engine computes for a search that is asked again."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import numpy as np
import pytest

from qmdctl.laptop.requests import LaptopProbe
from qmdctl.probes import Probe
from tests.support.checkpoints import checkpoint
from tests.support.service import ServiceProcess
from tests.support.texts import prose
from tests.support.wire import FP32, close, computed_tokens, embed, metric, rerank, scores

DOCUMENTS = [prose(20 + n, seed=n) for n in range(12)]
TIMINGS = ("queue", "compute")


@pytest.fixture(scope="module", params=["bert-cross-encoder", "qwen3-reranker"])
def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    environment = {"RERANK_MODEL": str(checkpoint(request.param)), "RESULT_CACHE_MB": "1", "CPU_THREADS": "1"}
    with ServiceProcess(environment, tmp_path_factory.mktemp("cache") / "service.log") as process:
        process.wait_healthy()
        with process.client() as client:
            yield client


only = pytest.mark.parametrize("client", ["bert-cross-encoder"], indirect=True)  # shares no prefix, so its tokens can be told exactly


def tokens_of(client: httpx.Client, query: str, documents: list[str]) -> int:
    """As `usage` counts them: every document, known or not."""
    answer = client.post("/v1/rerank", json={"query": query, "documents": documents}, headers={"cache-control": "no-store"})
    return int(answer.json()["usage"]["total_tokens"])


def timings(answer: httpx.Response) -> dict[str, float]:
    parts = (part.split(";dur=") for part in answer.headers["server-timing"].split(", "))
    return {name: float(milliseconds) for name, milliseconds in parts}


def test_a_repeated_rerank_is_not_computed(client: httpx.Client) -> None:
    body = {"query": "a repeated search", "documents": DOCUMENTS}
    first = client.post("/v1/rerank", json=body)
    before, hits = computed_tokens(client), metric(client, "embed_cache_hits_total", role="rerank")
    again = client.post("/v1/rerank", json=body)
    assert computed_tokens(client) == before
    assert metric(client, "embed_cache_hits_total", role="rerank") == hits + len(DOCUMENTS)
    assert again.json()["results"] == first.json()["results"]
    assert again.json()["usage"] == first.json()["usage"]
    assert [timings(again)[name] for name in TIMINGS] == [0, 0]
    rerank(client, "another search", DOCUMENTS)
    assert computed_tokens(client) > before


def test_of_pairs_that_are_partly_known_the_others_are_computed(client: httpx.Client) -> None:
    query = "a search that grows"
    rerank(client, query, DOCUMENTS[:9])
    most = tokens_of(client, query, DOCUMENTS[9:])
    before, misses = computed_tokens(client, "rerank"), metric(client, "embed_cache_misses_total", role="rerank")
    found = rerank(client, query, DOCUMENTS[::-1])
    assert 0 < computed_tokens(client, "rerank") - before <= most
    assert metric(client, "embed_cache_misses_total", role="rerank") == misses + 3
    fresh = client.post("/v1/rerank", json={"query": query, "documents": DOCUMENTS[::-1]}, headers={"cache-control": "no-store"})
    assert close(scores(found), scores(fresh.json()["results"]))
    assert len(set(scores(found))) == len(DOCUMENTS), "the documents must be told apart"


@only
def test_of_pairs_that_are_partly_known_exactly_the_others_are_computed(client: httpx.Client) -> None:
    query = "a search that grows exactly"
    rerank(client, query, DOCUMENTS[:9])
    missing = tokens_of(client, query, DOCUMENTS[9:])
    before = computed_tokens(client, "rerank")
    rerank(client, query, DOCUMENTS)
    assert computed_tokens(client, "rerank") == before + missing


def test_identical_documents_are_computed_once(client: httpx.Client) -> None:
    one = tokens_of(client, "identical", DOCUMENTS[:1])
    before = computed_tokens(client, "rerank")
    results = rerank(client, "identical", DOCUMENTS[:1] * 10)
    assert computed_tokens(client, "rerank") == before + one
    assert len(set(scores(results))) == 1


def test_two_queries_in_one_score_request(client: httpx.Client) -> None:
    queries = ["the first of two queries", "a second and longer query than the first", "the first of two queries", "a third"]
    body = {"text_1": queries, "text_2": DOCUMENTS[:4]}
    first = client.post("/v1/score", json=body)
    alone = [
        client.post("/v1/score", json={"text_1": query, "text_2": document}, headers={"cache-control": "no-store"}).json()["data"][0]
        for query, document in zip(queries, DOCUMENTS, strict=False)
    ]
    assert close([item["score"] for item in first.json()["data"]], [item["score"] for item in alone])
    before = computed_tokens(client)
    assert client.post("/v1/score", json=body).json()["data"] == first.json()["data"]
    assert rerank(client, queries[0], [DOCUMENTS[2]])[0]["score"] == first.json()["data"][2]["score"]
    assert computed_tokens(client) == before


@only
def test_a_repeated_query_vector_is_not_computed(client: httpx.Client) -> None:
    first = embed(client, ["a query to embed", "and one more"])
    before = computed_tokens(client)
    assert np.array_equal(embed(client, ["and one more", "a query to embed"]), first[::-1])
    short = embed(client, "a query to embed", dimensions=32)
    assert close(short[0], first[0, :32] / np.linalg.norm(first[0, :32]))
    assert computed_tokens(client) == before
    embed(client, "another query to embed")
    assert computed_tokens(client) > before


@only
@pytest.mark.parametrize(("directive", "kept"), [("no-cache", True), ("max-age=5, No-Cache", True), ("no-store", False)])
def test_a_client_that_wants_it_computed(client: httpx.Client, directive: str, kept: bool) -> None:
    def tokens(headers: dict[str, str]) -> float:
        before = computed_tokens(client)
        client.post("/v1/embeddings", json={"input": f"fresh with {directive}"}, headers=headers).raise_for_status()
        return computed_tokens(client) - before

    one = tokens({"cache-control": directive})
    assert one > 0
    assert tokens({"cache-control": directive}) == one
    assert tokens({}) == (0 if kept else one)
    assert tokens({"cache-control": "max-age=5"}) == 0


@only
@pytest.mark.parametrize("kind", [Probe, LaptopProbe])
def test_the_probes_of_qmdctl_are_computed_each_time(client: httpx.Client, kind: type[Probe]) -> None:
    costs = []
    with httpx.Client(trust_env=False) as own:
        probe = kind(service="embed", url=str(client.base_url).rstrip("/"), timeout_seconds=20, key=None, client=own)
        for _ in range(2):
            for role, ask in (("embed", probe.embedding), ("rerank", lambda: Probe.rerank(probe))):
                before = computed_tokens(client, role)
                ask()
                costs.append(computed_tokens(client, role) - before)
    assert costs[:2] == costs[2:]
    assert min(costs) > 0


@only
def test_bulk_neither_fills_nor_flushes(client: httpx.Client) -> None:
    embed(client, "a query before the bulk job")
    before, size = computed_tokens(client), metric(client, "embed_cache_bytes")
    bulk = [prose(30, seed=100 + n) for n in range(40)]
    embed(client, bulk)
    cost = computed_tokens(client) - before
    assert cost > 0
    embed(client, bulk)
    assert computed_tokens(client) == before + 2 * cost
    embed(client, "a query before the bulk job")
    assert computed_tokens(client) == before + 2 * cost
    assert metric(client, "embed_cache_bytes") == size


@only
def test_the_bound_holds(client: httpx.Client) -> None:
    for start in range(0, 1_200, 8):  # 384 dimensions: about 530 vectors are a megabyte
        embed(client, [f"query number {n}" for n in range(start, start + 8)])
    assert 900_000 < metric(client, "embed_cache_bytes") <= 1_000_000
    before = computed_tokens(client)
    embed(client, "query number 1199")
    assert computed_tokens(client) == before
    embed(client, "query number 0")
    assert computed_tokens(client) > before


def test_zero_turns_it_off(tmp_path_factory: pytest.TempPathFactory) -> None:
    with ServiceProcess({"RESULT_CACHE_MB": "0"}, tmp_path_factory.mktemp("off") / "service.log") as process:
        process.wait_healthy()
        with process.client() as client:
            vectors = embed(client, "the same query")
            once = computed_tokens(client)
            assert np.abs(embed(client, "the same query") - vectors).max() < FP32
            assert computed_tokens(client) == 2 * once > 0
            assert metric(client, "embed_cache_bytes") == 0
            assert metric(client, "embed_cache_misses_total") == 0
