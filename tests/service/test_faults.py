"""The engine dies, hangs, or loses its mind under load: every request is answered right, /health goes red, then green."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.service.conftest import FAULTS, Load, embed, metric
from tests.support.service import ServiceProcess, poll

Start = Callable[..., ServiceProcess]


def _pid(service: ServiceProcess) -> int:
    return int(service.health()[1]["engine"]["pid"])


@pytest.mark.parametrize(
    ("fault", "number", "cause"),
    [("kill", signal.SIGKILL, "exited"), ("stop", signal.SIGSTOP, "hang"), ("nan", signal.SIGUSR1, "canary")],
)
def test_a_broken_engine_loses_no_request(breakable: Start, fault: str, number: signal.Signals, cause: str) -> None:
    service = breakable(FAULT=fault)
    first = _pid(service)
    load = Load(service)
    try:
        poll(lambda: load.answered >= 10, 120, "the load to run")
        os.kill(first, number)
        poll(lambda: service.health()[0] == 503, 30, "a red /health", every=0.01)
        body = service.wait_healthy()
        before = load.answered
        poll(lambda: load.answered >= before + 10, 120, "the load to go on")
    finally:
        load.stop()
    assert load.wrong == []
    assert _pid(service) != first
    assert body["engine"]["restarts"] == 1
    assert metric(service, f'embed_engine_restarts_total{{cause="{cause}"}}') == 1
    assert metric(service, "embed_requeued_sequences_total") > 0


def test_an_idle_engine_with_nan_weights_is_found_by_the_canary(breakable: Start) -> None:
    service = breakable(FAULT="nan")
    first = _pid(service)
    os.kill(first, signal.SIGUSR1)
    poll(lambda: service.health()[0] == 503, 30, "a red /health", every=0.01)
    service.wait_healthy()
    assert _pid(service) != first


def test_a_poisonous_text_ends_alone(breakable: Start) -> None:
    """A text that ends every engine (FAKE: by its token id) gets a 500 that names it; its neighbours in the same batch are answered."""
    plain = breakable()
    with plain.client() as client:
        token = client.post("/tokenize", json={"input": "zebra", "add_special_tokens": False}).json()["tokens"]
    neighbours = [f"a good note, number {n}" for n in range(6)]
    expected = embed(plain, neighbours)
    service = breakable(FAULT="poison", FAULT_TOKEN=str(token[0]))
    with service.client() as client:
        # One slow request opens the way, so that the poison and its neighbours wait together and share a micro-batch.
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(3) as pool:
            bad = pool.submit(client.post, "/v1/embeddings", json={"input": ["a zebra"]})
            good = pool.submit(embed, service, neighbours)
            answer = bad.result()
            assert abs(good.result() - expected).max() < 1e-5
    assert answer.status_code == 500
    assert "input 0 ended the engine 3 times" in answer.json()["error"]["message"].lower()
    service.wait_healthy()


def test_an_engine_that_never_starts_is_told_in_health(tmp_path: Path) -> None:
    with ServiceProcess({"PYTHONPATH": FAULTS, "FAULT": "exit"}, tmp_path / "service.log") as service:
        poll(lambda: service.health()[1].get("status") == "error", 60, "an error in /health")
        status, body = service.health()
        assert status == 503
        assert "The engine ended 3 times before it was ready (it exited with status 7)" in body["error"]
        with service.client() as client:
            answer = client.post("/v1/embeddings", json={"input": "hello"})
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "engine_failed"


def test_the_http_process_never_loads_torch(service: ServiceProcess) -> None:
    assert service.process is not None
    with open(f"/proc/{service.process.pid}/maps") as maps:
        http_process = maps.read()
    with open(f"/proc/{_pid(service)}/maps") as maps:
        engine = maps.read()
    assert "libtorch" not in http_process
    assert "libtorch" in engine
