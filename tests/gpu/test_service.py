"""The whole service with DEVICE=cuda, on small checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.gpu import DEVICE, REHEARSAL, checkpoint_folder, need_package

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
PACKAGES = ("fastapi", "uvicorn", "httpx", "orjson", "prometheus_client", "pydantic_settings", "structlog", "filelock")
DOCUMENTS = ["a note about the garden", "how to back up a laptop", "", "soup " * 400]


def service(folder: Path, **environment: str) -> Any:
    for package in PACKAGES:
        need_package(package)
    models = {role: str(checkpoint_folder(f"qwen3-{name}")) for role, name in (("EMBED", "embedding"), ("RERANK", "reranker"))}
    from tests.support.service import ServiceProcess

    values = {
        "EMBED_MODEL": models["EMBED"],
        "RERANK_MODEL": models["RERANK"],
        "DEVICE": DEVICE,
        "DTYPE": "bfloat16" if REHEARSAL else "auto",
        **environment,
    }
    return ServiceProcess(values, folder / "service.log")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with service(tmp_path_factory.mktemp("gpu")) as process:
        process.wait_healthy()
        yield process


def embed(process: Any, texts: list[str]) -> Any:
    with process.client() as client:
        answer = client.post("/v1/embeddings", json={"input": texts})
    assert answer.status_code == 200, answer.text
    return np.array([entry["embedding"] for entry in answer.json()["data"]], np.float32)


def rerank(process: Any, query: str, documents: list[str]) -> list[float]:
    with process.client() as client:
        answer = client.post("/v1/rerank", json={"query": query, "documents": documents})
    assert answer.status_code == 200, answer.text
    results = sorted(answer.json()["results"], key=lambda result: result["index"])
    return [result["relevance_score"] for result in results]


def test_health_says_what_computes(running: Any) -> None:
    _, body = running.health()
    assert body["status"] == "ok" and body["device"] == DEVICE and body["cuda_available"] is not REHEARSAL
    wanted = {"executor": "packed", "dtype": "bfloat16", "attention": "sdpa" if REHEARSAL else "varlen"}
    assert {name: body["engine"][name] for name in wanted} == wanted


def test_embeddings_answer_alike_alone_and_together(running: Any) -> None:
    together = embed(running, DOCUMENTS)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-3)
    alone = np.concatenate([embed(running, [text]) for text in DOCUMENTS])
    assert (together * alone).sum(1).min() > 0.99


def test_rerank_answers_alike_alone_and_together(running: Any) -> None:
    together = rerank(running, "backups", DOCUMENTS)
    assert all(0 <= score <= 1 for score in together) and max(together) > min(together)
    alone = [rerank(running, "backups", [document])[0] for document in DOCUMENTS]
    np.testing.assert_allclose(together, alone, atol=0.05)


def test_many_requests_keep_the_engine(running: Any) -> None:
    pid = running.health()[1]["engine"]["pid"]
    rows = embed(running, [f"note {n} " * (1 + n % 90) for n in range(300)])
    assert np.isfinite(rows).all() and len(rows) == 300
    _, body = running.health()
    assert body["status"] == "ok" and body["engine"]["pid"] == pid and body["engine"]["restarts"] == 0


def test_a_cap_that_holds_the_models_is_kept(tmp_path: Path) -> None:
    with service(tmp_path, EMBED_MEMORY_GB="2") as process:
        process.wait_healthy()
        assert np.isfinite(embed(process, DOCUMENTS)).all()


def test_a_cap_below_the_models_says_so(tmp_path: Path) -> None:
    if REHEARSAL:
        pytest.skip("a cap is on a GPU's memory")
    from tests.support.service import poll

    with service(tmp_path, EMBED_MEMORY_GB="0.001") as process:
        body = poll(lambda: (found := process.health()[1]).get("status") == "error" and found, 120, "an error in /health")
    assert body["error_code"] == "no_memory" and "EMBED_MEMORY_GB" in body["error"]
