"""While models load: /livez at once, /health tells the phase, requests wait. Where they cannot load: the process stays and says why."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.contract.test_information import OUR_FIELDS, SEED_FIELDS
from tests.support.service import ServiceProcess, poll
from tests.support.wire import assert_error, in_parallel, vectors


def livez(process: ServiceProcess) -> bool:
    try:
        return httpx.get(f"{process.url}/livez", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def test_requests_that_come_too_early_wait_and_are_answered(tmp_path: Path) -> None:
    with ServiceProcess({}, tmp_path / "service.log") as process:
        poll(lambda: livez(process), 15, "/livez")
        with process.client() as client:
            early = client.get("/health")
            answers = in_parallel(
                lambda: client.post("/v1/embeddings", json={"input": ["one", "two"]}),
                lambda: client.post("/v1/rerank", json={"query": "one", "documents": ["two"]}),
                lambda: client.post("/tokenize", json={"input": "one"}),
            )
            late = client.get("/health")
        assert early.status_code == 503
        assert early.json()["status"] == "loading"
        assert early.json()["phase"]
        assert early.json().keys() >= SEED_FIELDS | OUR_FIELDS
        assert vectors(answers[0]).shape == (2, 384)
        assert len(answers[1].json()["results"]) == 1
        assert answers[2].json()["count"] == 3
        assert late.json()["status"] in ("ok", "loading")
        process.wait_healthy()


def test_a_request_that_waited_long_enough_gets_503(tmp_path: Path) -> None:
    with ServiceProcess({"LOAD_WAIT_SECONDS": "0.1"}, tmp_path / "service.log") as process:
        poll(lambda: livez(process), 15, "/livez")
        with process.client() as client:
            assert_error(client.post("/v1/embeddings", json={"input": "one"}), 503)
            assert_error(client.post("/v1/rerank", json={"query": "one", "documents": ["two"]}), 503)
            assert client.get("/v1/models").status_code == 200
            assert client.get("/metrics").status_code == 200
            assert client.get("/openapi.json").status_code == 200


BROKEN: dict[str, tuple[dict[str, str], list[str]]] = {
    "a folder that is not there": (
        {"EMBED_MODEL": "/no/such/folder", "RERANK_MODEL": "/no/such/folder"},
        ["/no/such/folder", "EMBED_MODEL"],
    ),
    "no CUDA": ({"DEVICE": "cuda", "CUDA_VISIBLE_DEVICES": ""}, ["CUDA", "DEVICE"]),
}


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[ServiceProcess, dict[str, Any]]]]:
    """Both services at once, with the body that /health settled on."""
    with ExitStack() as stack:
        started = {
            name: stack.enter_context(
                ServiceProcess({**settings, "LOAD_WAIT_SECONDS": "1"}, tmp_path_factory.mktemp("broken") / "service.log")
            )
            for name, (settings, _) in BROKEN.items()
        }

        def failed(process: ServiceProcess) -> dict[str, Any] | None:
            status, body = process.health()
            assert status in (0, 503)
            return body if body.get("status") == "error" else None

        yield {
            name: (process, poll(lambda process=process: failed(process), 60, f"the error of {name}")) for name, process in started.items()
        }


@pytest.mark.parametrize("name", BROKEN)
def test_health_says_cause_and_fix(broken: dict[str, tuple[ServiceProcess, dict[str, Any]]], name: str) -> None:
    _, body = broken[name]
    assert body.keys() >= SEED_FIELDS | OUR_FIELDS | {"error"}
    for word in BROKEN[name][1]:
        assert word in body["error"], body["error"]
    assert "\n" not in body["error"]
    assert "Traceback" not in body["error"]
    assert set(body["models"]) == {"embed", "rerank"}


@pytest.mark.parametrize("name", BROKEN)
def test_the_process_stays_up_and_answers_503_with_the_cause(broken: dict[str, tuple[ServiceProcess, dict[str, Any]]], name: str) -> None:
    process, _ = broken[name]
    assert livez(process)
    with process.client() as client:
        error = assert_error(client.post("/v1/embeddings", json={"input": "one"}), 503)
        assert BROKEN[name][1][0] in error["message"]
    assert process.process is not None
    assert process.process.poll() is None
