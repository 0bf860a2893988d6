"""Every supported architecture over HTTP against plain transformers: unit vectors and probabilities within 1e-5."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.models import reference
from tests.models.texts import QUERY, TEXTS
from tests.support.checkpoints import checkpoint
from tests.support.service import ServiceProcess, minilm_path
from tests.support.texts import prose
from tests.support.wire import embed, rerank

TOLERANCE = 1e-5
MAX_INPUT_TOKENS = 640
LONG = prose(900, seed=4)
# An odd boundary for a tokeniser that joins a space with the word after it.
DOCUMENTS = [*TEXTS, "  two spaces before", "\n", LONG]

pytestmark = pytest.mark.timeout(600)


@dataclass(frozen=True)
class Embedder:
    name: str
    pooling: str
    max_tokens: int
    query: str = "{}"  # what input_type=query makes of a text, by the model card
    document: str = "{}"
    layer_norm: bool = False

    @property
    def folder(self) -> Path:
        return Path(minilm_path()) if self.name == "minilm" else checkpoint(self.name)

    def reference(self, texts: list[str]) -> reference.Vectors:
        config = reference.nomic_config(self.folder) if self.name == "nomic" else None
        return reference.embed(self.folder, texts, self.pooling, self.max_tokens, config)


@dataclass(frozen=True)
class Reranker:
    name: str
    max_tokens: int

    def reference(self, query: str, documents: list[str], **options: Any) -> reference.Vectors:
        if self.name.startswith("qwen3"):
            return reference.judge(checkpoint("qwen3-reranker"), query, documents, self.max_tokens, **options)
        return reference.cross_encode(checkpoint(self.name), query, documents, self.max_tokens)


@dataclass(frozen=True)
class Served:
    embedder: Embedder
    reranker: Reranker
    client: httpx.Client


QWEN3 = Embedder(
    "qwen3-embedding",
    "last",
    MAX_INPUT_TOKENS,
    query="Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:{}",
)
NOMIC = Embedder("nomic", "mean", MAX_INPUT_TOKENS, query="search_query: {}", document="search_document: {}", layer_norm=True)
PAIRS = {
    "qwen3": (QWEN3, Reranker("qwen3-reranker", MAX_INPUT_TOKENS)),
    "nomic+bge-m3": (NOMIC, Reranker("bge-reranker-v2-m3", MAX_INPUT_TOKENS)),
    "bge": (Embedder("bge-base", "cls", 512), Reranker("bge-reranker-base", 512)),
    "minilm+bert": (Embedder("minilm", "mean", 256), Reranker("bert-cross-encoder", 512)),
    "distilbert+qwen3-seq-cls": (Embedder("distilbert", "mean", 512), Reranker("qwen3-reranker-seq-cls", MAX_INPUT_TOKENS)),
}


@pytest.fixture(scope="module", params=PAIRS)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    embedder, reranker = PAIRS[request.param]
    environment = {
        "EMBED_MODEL": str(embedder.folder),
        "RERANK_MODEL": str(checkpoint(reranker.name)),
        "MAX_INPUT_TOKENS": str(MAX_INPUT_TOKENS),
        "CPU_THREADS": "1",
        "MAX_BATCH_SIZE": "7",  # the requests below are cut into several micro-batches
    }
    with ServiceProcess(environment, tmp_path_factory.mktemp("models") / "service.log") as process:
        health = process.wait_healthy(300)
        assert health["engine"]["executor"] == ("sentence-transformers" if embedder.name == "distilbert" else "packed")
        with process.client() as client:
            yield Served(embedder, reranker, client)


def scores(served: Served, documents: list[str], **fields: Any) -> reference.Vectors:
    """Probabilities in the order of the documents; checks the order of the answer."""
    results = rerank(served.client, QUERY, documents, **fields)
    found = [result["relevance_score"] for result in results]
    assert found == sorted(found, reverse=True) and sorted(r["index"] for r in results) == list(range(len(documents)))
    return np.array([r["relevance_score"] for r in sorted(results, key=lambda r: int(r["index"]))])


def test_embeddings(served: Served) -> None:
    texts = [*TEXTS, LONG]
    answer = served.client.post("/v1/embeddings", json={"input": texts})
    vectors = np.array([item["embedding"] for item in answer.json()["data"]])
    expected = served.embedder.reference(texts)
    np.testing.assert_allclose(vectors, expected, atol=TOLERANCE)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=TOLERANCE)
    assert int(answer.headers["x-truncated-inputs"]) >= 1, "the longest text must have been cut"
    cosines = expected @ expected.T - np.eye(len(texts))
    assert cosines.max() < 0.999, "the texts must be told apart"


def test_prompts(served: Served) -> None:
    embedder = served.embedder
    for kind, template in (("query", embedder.query), ("document", embedder.document)):
        expected = embedder.reference([template.format(QUERY), template.format(TEXTS[0])])
        np.testing.assert_allclose(embed(served.client, [QUERY, TEXTS[0]], input_type=kind), expected, atol=TOLERANCE)
        if template != "{}":
            assert np.abs(embedder.reference([QUERY]) - expected[:1]).max() > 0.01, "the prompt must show"


@pytest.mark.parametrize("dimensions", [16, 48])
def test_matryoshka(served: Served, dimensions: int) -> None:
    whole = served.embedder.reference(TEXTS)
    expected = reference.matryoshka(whole, dimensions, served.embedder.layer_norm)
    np.testing.assert_allclose(embed(served.client, TEXTS, dimensions=dimensions), expected, atol=TOLERANCE)
    if served.embedder.layer_norm:
        assert np.abs(reference.matryoshka(whole, dimensions, False) - expected).max() > 100 * TOLERANCE, "the layer norm must show"


def test_rerank(served: Served) -> None:
    expected = served.reranker.reference(QUERY, DOCUMENTS)
    np.testing.assert_allclose(scores(served, DOCUMENTS), expected, atol=TOLERANCE)
    assert expected.max() - expected.min() > 0.05, "the documents must be told apart"


@pytest.mark.parametrize("served", ["qwen3", "distilbert+qwen3-seq-cls"], indirect=True)
def test_rerank_with_an_instruction(served: Served) -> None:
    expected = served.reranker.reference(QUERY, TEXTS, instruction="Find jokes")
    np.testing.assert_allclose(scores(served, TEXTS, instruction="Find jokes"), expected, atol=TOLERANCE)
    assert np.abs(expected - served.reranker.reference(QUERY, TEXTS)).max() > 0.001


@pytest.mark.parametrize("served", ["qwen3"], indirect=True)
def test_qwen3_token_ids(served: Served) -> None:
    """The ids that Qwen3's model cards name, in what is computed."""
    tokenizer = reference.tokenizer_of(QWEN3.folder)
    ids = tokenizer(TEXTS[0])["input_ids"]
    assert ids[-1] == 151643 and tokenizer.eos_token_id == 151645
    from_text, with_end, without_end = (embed(served.client, value)[0] for value in (TEXTS[0], ids, ids[:-1]))
    np.testing.assert_allclose(with_end, from_text, atol=TOLERANCE)
    assert np.abs(without_end - from_text).max() > 0.01, "a missing <|endoftext|> must show"
    judge = reference.tokenizer_of(checkpoint("qwen3-reranker"))
    assert [judge.convert_tokens_to_ids(word) for word in ("yes", "no")] == [9693, 2152]
    swapped = 1 - served.reranker.reference(QUERY, TEXTS)
    assert np.abs(scores(served, TEXTS) - swapped).max() > 0.1, "yes and no in each other's place must show"
