"""Published answers of real models. MiniLM, which installs as a package, always runs; the others with `--weights-dir DIR`.

DIR holds folders named like the hub's ids, or like their last part. They run on DEVICE (default auto) in DTYPE (default auto).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.models import reference
from tests.models.texts import TEXTS
from tests.support.require import require
from tests.support.service import ServiceProcess, minilm_path
from tests.support.texts import PLANETS, RED_PLANET
from tests.support.wire import embed, rerank

# Cosines of RED_PLANET with PLANETS, in float32: sentence-transformers, tests/sentence_transformer/test_pretrained.py at 2e3e6352.
COSINES = {
    "sentence-transformers/all-MiniLM-L6-v2": [0.46469, 0.81146, 0.72792, 0.75019],
    "Qwen/Qwen3-Embedding-0.6B": [0.48113, 0.69014, 0.58377, 0.66434],
    "BAAI/bge-base-en-v1.5": [0.56823, 0.85511, 0.73461, 0.69612],
    "nomic-ai/nomic-embed-text-v1.5": [0.65113, 0.88814, 0.79888, 0.81393],
}
# Similarities of CAPITAL_AND_GRAVITY: model cards of Qwen3-Embedding.
QWEN3_MATRICES = {
    "Qwen/Qwen3-Embedding-0.6B": [[0.7645568, 0.1414251], [0.1354974, 0.5999550]],
    "Qwen/Qwen3-Embedding-4B": [[0.7534, 0.1147], [0.0320, 0.6258]],
    "Qwen/Qwen3-Embedding-8B": [[0.7493, 0.0751], [0.0880, 0.6318]],
}
CAPITAL_AND_GRAVITY = (
    ["What is the capital of China?", "Explain gravity"],
    [
        "The capital of China is Beijing.",
        "Gravity is a force that attracts two bodies towards each other. It gives weight to physical objects and is responsible for the "
        "movement of planets around the sun.",
    ],
)


@dataclass(frozen=True)
class Scores:
    """Probabilities of PLANETS for RED_PLANET and how exactly they were published."""

    values: list[float]
    tolerance: float


# sentence-transformers at cad21198: tests/cross_encoder/test_model.py (float32 logits) and test_pretrained.py (bfloat16).
RERANKERS = {
    "Qwen/Qwen3-Reranker-0.6B": Scores([1 / (1 + np.exp(-x)) for x in (-3.109297752, 7.120389938, -0.378754616, 3.541637420)], 1e-4),
    "BAAI/bge-reranker-v2-m3": Scores([0.01855, 1.0, 0.78906, 0.98828], 0.01),
    "BAAI/bge-reranker-base": Scores([0.87891, 0.99609, 0.99609, 0.05029], 0.01),
}

Serve = Callable[..., AbstractContextManager[ServiceProcess]]


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    @contextmanager
    def start(embed_model: str, rerank_model: str) -> Iterator[ServiceProcess]:
        device = {name: os.environ.get(name, "auto") for name in ("DEVICE", "DTYPE")}
        with ServiceProcess({"EMBED_MODEL": embed_model, "RERANK_MODEL": rerank_model, **device}, tmp_path / "service.log") as process:
            process.wait_healthy(600)
            yield process

    return start


@pytest.fixture
def weights(request: pytest.FixtureRequest) -> Callable[[str], str]:
    """A model's folder in --weights-dir; skips without it."""
    directory = request.config.getoption("--weights-dir")

    def find(model: str) -> str:
        candidates = [Path(directory) / model, Path(directory) / model.rpartition("/")[2]] if directory else []
        found = next((folder for folder in candidates if (folder / "config.json").is_file()), None)
        require("weights", found is not None, f"no {model} in --weights-dir ({directory or 'not given'})")
        return str(found)

    return find


def half_precision(process: ServiceProcess) -> bool:
    return str(process.health()[1]["engine"]["dtype"]) != "float32"


def test_minilm(service: ServiceProcess) -> None:
    with service.client() as client:
        vectors = embed(client, [RED_PLANET, *PLANETS])
    np.testing.assert_allclose(vectors[1:] @ vectors[0], COSINES["sentence-transformers/all-MiniLM-L6-v2"], atol=2e-5)


def test_minilm_against_sentence_transformers(service: ServiceProcess) -> None:
    from sentence_transformers import SentenceTransformer

    expected = SentenceTransformer(minilm_path(), device="cpu").encode(TEXTS, batch_size=4, normalize_embeddings=True)
    with service.client() as client:
        np.testing.assert_allclose(embed(client, TEXTS), expected, atol=1e-5)


def test_minilm_in_bfloat16(tmp_path: Path) -> None:
    with ServiceProcess({"DTYPE": "bfloat16"}, tmp_path / "service.log") as process:
        assert process.wait_healthy(300)["engine"]["dtype"] == "bfloat16"
        with process.client() as client:
            vectors = embed(client, [RED_PLANET, *PLANETS])
    # Their own bfloat16 run gave 0.46371, 0.81205, 0.72828, 0.75051.
    np.testing.assert_allclose(vectors[1:] @ vectors[0], COSINES["sentence-transformers/all-MiniLM-L6-v2"], atol=5e-3)


@pytest.mark.weights
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("model", [name for name in COSINES if "MiniLM" not in name])
def test_cosines(serve: Serve, weights: Callable[[str], str], model: str) -> None:
    folder = weights(model)
    prompts = reference.own_prompts(Path(folder))  # as sentence-transformers' encode_query and encode_document take them
    texts = [prompts.get("query", "") + RED_PLANET, *(prompts.get("document", "") + text for text in PLANETS)]
    with serve(folder, folder) as process, process.client() as client:
        vectors = embed(client, texts)
        tolerance = 0.01 if half_precision(process) else 1e-3
    np.testing.assert_allclose(vectors[1:] @ vectors[0], COSINES[model], atol=tolerance)


@pytest.mark.weights
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("model", QWEN3_MATRICES)
def test_qwen3_embedding_model_cards(serve: Serve, weights: Callable[[str], str], model: str) -> None:
    folder = weights(model)
    queries, documents = CAPITAL_AND_GRAVITY
    with serve(folder, folder) as process, process.client() as client:
        similarities = embed(client, queries, input_type="query") @ embed(client, documents, input_type="document").T
        tolerance = 0.01 if half_precision(process) else 1e-3
    np.testing.assert_allclose(similarities, QWEN3_MATRICES[model], atol=tolerance)


@pytest.mark.weights
@pytest.mark.timeout(1200)
def test_qwen3_embedding_does_not_overflow(serve: Serve, weights: Callable[[str], str]) -> None:
    """Texts that begin with "import" are NaN in float16 (QwenLM/Qwen3-Embedding#164)."""
    folder = weights("Qwen/Qwen3-Embedding-0.6B")
    with serve(folder, folder) as process, process.client() as client:
        vectors = embed(client, ["importance of life", "import numpy as np"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


@pytest.mark.weights
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("model", RERANKERS)
def test_rerankers(serve: Serve, weights: Callable[[str], str], model: str) -> None:
    folder = weights(model)
    published = RERANKERS[model]
    with serve(minilm_path(), folder) as process, process.client() as client:
        results = rerank(client, RED_PLANET, PLANETS)
        tolerance = max(published.tolerance, 0.02 if half_precision(process) else 0)
    scores = [result["relevance_score"] for result in sorted(results, key=lambda result: int(result["index"]))]
    np.testing.assert_allclose(scores, published.values, atol=tolerance)
