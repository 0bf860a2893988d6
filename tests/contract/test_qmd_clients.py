"""What the QMD clients in the wild really send: names, batch sizes, prefixes, checks of the answer."""

from __future__ import annotations

import json

import httpx
import numpy as np
import pytest

from tests.support.texts import LONE_HIGH, chunk, prose
from tests.support.wire import close, embed, in_parallel, rerank, vectors

SEED_HEADERS = {
    "content-type": "application/json", "authorization": "Bearer sk-test", "accept-encoding": "gzip, deflate", "user-agent": "node",
    "accept": "*/*", "accept-language": "*", "sec-fetch-mode": "cors",
}  # fmt: skip
EMBED_NAME = "hf:ggml-org/embeddinggemma-300M-GGUF/embeddinggemma-300M-Q8_0.gguf"
RERANK_NAME = "ExpedientFalcon/qwen3-reranker:0.6b-q8_0"


def test_the_seeds_probe(client: httpx.Client) -> None:
    answer = client.get("/health", headers={"authorization": "Bearer sk-test"})
    assert answer.status_code == 200
    assert answer.json()["status"] == "ok"
    assert answer.json()["models"]


def test_an_index_batch_of_66_kb(client: httpx.Client) -> None:
    """32 chunks of about 2 kB in Gemma's document form, an emoji cut in half among them."""
    texts = [f"title: Notes {n} | text: # Notes {n}\n\n{chunk(2_000, n)}" for n in range(32)]
    texts[5] += LONE_HIGH
    body = json.dumps({"model": EMBED_NAME, "input": texts}).encode()
    assert 60_000 < len(body) < 75_000
    answer = client.post("/v1/embeddings", content=body, headers=SEED_HEADERS)
    rows = vectors(answer)
    assert rows.shape == (32, 384)
    assert [d["index"] for d in answer.json()["data"]] == list(range(32))
    singles = in_parallel(*(lambda n=n: embed(client, texts[n].replace(LONE_HIGH, "\ufffd"), model=EMBED_NAME) for n in (0, 5, 31)))
    for n, single in zip((0, 5, 31), singles, strict=True):
        assert close(rows[n : n + 1], single)


@pytest.mark.parametrize("model", [EMBED_NAME, "Qwen/Qwen3-Embedding-4B", "embeddinggemma", "default", "embed", "qmd-embed", "nomic-embed"])
def test_document_and_query_vectors_are_one_models_whatever_the_names(client: httpx.Client, model: str) -> None:
    """`qmd embed`, `qmd query` and `qmd vsearch` send three different names."""
    assert close(embed(client, "one note", model=model), embed(client, "one note"))


@pytest.mark.parametrize("count", [10, 32, 64, 100, 250])
def test_batch_sizes_of_the_clients(client: httpx.Client, count: int) -> None:
    texts = [prose(12, n) for n in range(count)]
    body = client.post("/v1/embeddings", json={"model": "embed", "input": texts, "encoding_format": "float"}).json()
    assert [d["index"] for d in body["data"]] == list(range(count))
    assert {len(d["embedding"]) for d in body["data"]} == {384}


def test_32_parallel_singles_after_a_failed_batch(client: httpx.Client) -> None:
    texts = [chunk(600, n) for n in range(32)]
    singles = in_parallel(*(lambda t=t: embed(client, t, model="embed") for t in texts))
    assert close(np.concatenate(singles), embed(client, texts))


def test_four_requests_of_ten_in_flight(client: httpx.Client) -> None:
    batches = [[chunk(700, 10 * b + n) for n in range(10)] for b in range(4)]
    for batch, rows in zip(batches, in_parallel(*(lambda b=b: embed(client, b) for b in batches)), strict=True):
        assert close(rows[3:4], embed(client, batch[3]))


def test_one_search(client: httpx.Client) -> None:
    """3 short texts, then a rerank of 19 documents of 2.8 to 3.0 thousand characters."""
    query = "how does the sidecar keep its name"
    texts = [f"task: search result | query: {t}" for t in (query, "tailnet node state", "The state is kept in a named volume.")]
    answer = client.post("/v1/embeddings", json={"model": "Qwen/Qwen3-Embedding-4B", "input": texts}, headers=SEED_HEADERS)
    assert vectors(answer).shape == (3, 384)
    documents = [chunk(2_800 + 10 * n, n) for n in range(19)]
    body = {"model": RERANK_NAME, "query": query, "documents": documents}
    answer = client.post("/v1/rerank", json=body, headers=SEED_HEADERS)
    results = answer.json()["results"]
    assert sorted(r["index"] for r in results) == list(range(19))
    assert all(0 <= r["relevance_score"] <= 1 for r in results)


def test_the_largest_rerank_of_a_search(client: httpx.Client) -> None:
    documents = [chunk(3_600, n) for n in range(40)]
    results = rerank(client, "an intent\n\na query", documents, model="qwen3-reranker")
    assert sorted(r["index"] for r in results) == list(range(40))


def test_gemma_shapes_become_the_served_models_own_form(client: httpx.Client) -> None:
    """MiniLM's own form is the bare text."""
    query, text = "where are backups kept", "Copies go to the second disk."
    assert close(embed(client, f"task: search result | query: {query}"), embed(client, query))
    assert close(embed(client, f"title: none | text: {text}"), embed(client, text))
    assert close(embed(client, f"title: Backups | text: {text}"), embed(client, f"Backups\n{text}"))


def test_a_client_that_checks_the_answers_model(client: httpx.Client, minilm: str) -> None:
    """It fails closed unless `model` is what it asked for, every index is there once and every number is finite."""
    for name in (minilm, "default", "qmd-embed"):
        body = client.post("/v1/embeddings", json={"model": name, "input": ["a", "b", "c"]}).json()
        assert body["model"] == name
        assert sorted(d["index"] for d in body["data"]) == [0, 1, 2]
        assert all(np.isfinite(d["embedding"]).all() for d in body["data"])


def test_a_client_that_asks_first_whether_its_model_is_listed(client: httpx.Client, minilm: str) -> None:
    for path in ("/v1/models", "/models"):
        assert {minilm, "qmd-embed", "qmd-rerank"} <= {m["id"] for m in client.get(path).json()["data"]}


def test_matryoshka_by_the_client_is_matryoshka_by_the_server(client: httpx.Client) -> None:
    whole = embed(client, "one note")[:, :128].astype(np.float64)
    assert close(embed(client, "one note", dimensions=128), whole / np.linalg.norm(whole), 1e-6)


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank", "/v2/rerank", "/reranks", "/v1/reranks"])
def test_rerank_as_each_client_writes_it(client: httpx.Client, path: str) -> None:
    bodies = [
        {"model": "qwen3-reranker", "query": "q", "documents": ["a", "b", "c"]},
        {"model": "x", "query": "q", "documents": ["a", "b", "c"], "top_n": 3},
        {"model": "x", "query": "q", "documents": ["a", "b", "c"], "top_n": 3, "return_documents": False},
        {"query": "q", "documents": [{"file": "a.md", "text": "a"}, {"file": "b.md", "text": "b"}, {"file": "c.md", "text": "c"}]},
    ]
    for body in bodies:
        results = client.post(path, json=body).json()["results"]
        assert sorted(r["index"] for r in results) == [0, 1, 2]


def test_scoring_as_a_fallback_writes_it(client: httpx.Client) -> None:
    body = client.post("/score", json={"model": "x", "queries": "q", "documents": ["a", "b"]}).json()
    assert [d["index"] for d in body["data"]] == [0, 1]
    assert all(0 <= d["score"] <= 1 for d in body["data"])
