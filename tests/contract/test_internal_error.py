"""500: a text that the model cannot compute. The model is MiniLM with NaN in one word's row, so the fault is real."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from tests.support.service import ServiceProcess
from tests.support.wire import assert_error, close, embed, in_parallel, rerank

POISON = "zebra"


@pytest.fixture(scope="module")
def poisoned(minilm: str, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    folder = tmp_path_factory.mktemp("poisoned") / "model"
    shutil.copytree(minilm, folder)
    weights = load_file(Path(minilm) / "model.safetensors")
    name = next(n for n in weights if n.endswith("word_embeddings.weight"))
    table = weights[name].copy()
    table[tokenizer.token_to_id(POISON)] = np.nan
    (folder / "model.safetensors").unlink()
    save_file({**weights, name: table}, folder / "model.safetensors", metadata={"format": "pt"})
    log = folder.parent / "service.log"
    with ServiceProcess({"EMBED_MODEL": str(folder), "RERANK_MODEL": str(folder)}, log) as process:
        process.wait_healthy()
        yield process


@pytest.fixture
def sick(poisoned: ServiceProcess) -> Iterator[httpx.Client]:
    with poisoned.client() as client:
        yield client


def test_a_500_has_an_id_that_the_log_has_and_the_log_no_text(poisoned: ServiceProcess, sick: httpx.Client) -> None:
    answer = sick.post("/v1/embeddings", json={"input": ["a lion", f"a {POISON} with a quilted waistcoat"]})
    error = assert_error(answer, 500)
    request_id = answer.headers["x-request-id"]
    assert request_id in error["message"]
    log = poisoned.log.read_text()
    assert request_id in log
    assert "quilted" not in log


def test_neighbours_of_a_poisonous_text_are_answered(sick: httpx.Client) -> None:
    healthy = embed(sick, "a lion")
    calls = [lambda n=n: sick.post("/v1/embeddings", json={"input": f"a {POISON}" if n % 3 == 0 else "a lion"}) for n in range(12)]
    for n, answer in enumerate(in_parallel(*calls)):
        if n % 3 == 0:
            assert_error(answer, 500)
        else:
            assert close(np.asarray([answer.json()["data"][0]["embedding"]], np.float32), healthy)


def test_rerank_with_a_poisonous_document(sick: httpx.Client) -> None:
    assert_error(sick.post("/v1/rerank", json={"query": "animals", "documents": ["a lion", f"a {POISON}"]}), 500)
    assert len(rerank(sick, "animals", ["a lion", "a horse"])) == 2


def test_the_engine_that_is_well_is_kept(sick: httpx.Client) -> None:
    assert_error(sick.post("/v1/embeddings", json={"input": POISON}), 500)
    assert embed(sick, "a lion").shape == (1, 384)
    assert sick.get("/health").status_code == 200
