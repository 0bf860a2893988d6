"""Engines on the nodes of a real Ray cluster: work spreads over them, and whatever of it ends, every request is answered right."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.ray.conftest import Running
from tests.service.conftest import TEXTS, Load, embed, metric
from tests.support.service import ROOT, ServiceProcess, poll

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


def answered(running: Running) -> list[int]:
    return [line["micro_batches"] for line in running.engines()]


def test_each_engine_is_on_a_node_of_its_own_and_micro_batches_spread(running: Running) -> None:
    pids = [line["pid"] for line in running.engines()]
    assert sorted(running.cluster.holds(worker, pid) for worker in running.workers for pid in pids) == [False, False, True, True]
    before = answered(running)
    embed(running.service, [f"{n} {text}" for n in range(100) for text in TEXTS])
    assert all(now >= was + 3 for was, now in zip(before, answered(running), strict=True))


def test_the_http_process_holds_nothing_of_ray(running: Running) -> None:
    assert running.service.process is not None
    with open(f"/proc/{running.service.process.pid}/maps", encoding="utf-8") as maps:
        assert "/ray/" not in maps.read()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hung"])
def test_an_engine_that_ends_loses_no_request_and_comes_back(running: Running, number: signal.Signals) -> None:
    before = running.wait_ready()
    load = Load(running.service)
    try:
        poll(lambda: load.answered >= 10, 120, "the load to run")
        os.kill(before[0]["pid"], number)
        poll(lambda: running.engines()[0]["pid"] != before[0]["pid"] and len(running.wait_ready()) == 2, 300, "the engine to come back")
        seen, share = load.answered, answered(running)
        poll(lambda: load.answered >= seen + 10, 120, "the load to go on")
        poll(lambda: all(now > was for was, now in zip(share, answered(running), strict=True)), 60, "work for both")
    finally:
        load.stop()
    after = running.engines()
    assert load.wrong == []
    assert after[0]["restarts"] == before[0]["restarts"] + 1
    assert (after[1]["pid"], after[1]["restarts"]) == (before[1]["pid"], before[1]["restarts"]), "the other went on"
    cause = {signal.SIGKILL: "exited", signal.SIGSTOP: "hang"}[number]
    assert metric(running.service, f'embed_engine_restarts_total{{cause="{cause}"}}') >= 1


def control(service: ServiceProcess, *arguments: str) -> dict[str, Any]:
    """The last line of `embed-service control`."""
    command = [sys.executable, "-m", "embed_service", "control", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=service.environment, capture_output=True, text=True, timeout=300, check=True)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def test_a_pause_ends_every_engine_and_a_resume_starts_all(running: Running) -> None:
    before = running.wait_ready()
    expected = embed(running.service, TEXTS[:2])
    assert control(running.service, "pause")["state"] == "paused"
    poll(lambda: not any(os.path.exists(f"/proc/{line['pid']}") for line in before), 30, "the last moment of their processes")
    assert [line["phase"] for line in running.engines()] == ["paused"] * 2
    assert control(running.service, "resume")["state"] == "serving"
    assert abs(embed(running.service, TEXTS[:2]) - expected).max() < 1e-5
    running.wait_ready()


def test_a_poisonous_text_ends_alone(running: Running) -> None:
    running.wait_ready()
    texts = [f"a good note, number {n}" for n in range(12)]
    with running.service.client() as client, ThreadPoolExecutor(2) as pool:
        good = pool.submit(embed, running.service, texts)
        answer = client.post("/v1/embeddings", json={"input": ["a zebra"]})
        assert answer.status_code == 500, answer.text
        assert "Input 0 ended the engine 3 times" in answer.text
        assert good.result().shape[0] == 12
    running.wait_ready()


def test_a_node_that_is_lost_loses_no_request_and_a_new_one_takes_its_place(running: Running) -> None:
    before = running.wait_ready()
    lost = next(worker for worker in running.workers if running.cluster.holds(worker, before[1]["pid"]))
    load = Load(running.service)
    try:
        poll(lambda: load.answered >= 10, 120, "the load to run")
        running.cluster.kill(lost)
        poll(lambda: running.engines()[1]["phase"] != "ready", 60, "the engine's end", every=0.01)
        seen = load.answered
        poll(lambda: load.answered >= seen + 10, 120, "the other engine to answer")
        poll(lambda: "no box has 1 CPU free" in running.engines()[1].get("detail", ""), 60, "the reason why it waits")
        running.workers[running.workers.index(lost)] = running.cluster.start_worker()
        running.wait_ready()
    finally:
        load.stop()
    assert load.wrong == []


def test_a_node_that_goes_silent_costs_no_other_engine_anything(running: Running) -> None:
    """Before this cluster, whose health checks are Ray's own, takes it for dead."""
    before = running.wait_ready()
    silent = next(worker for worker in running.workers if running.cluster.holds(worker, before[1]["pid"]))
    load = Load(running.service)
    try:
        poll(lambda: load.answered >= 10, 120, "the load to run")
        running.cluster.silence(silent)
        poll(lambda: running.engines()[1]["restarts"] > before[1]["restarts"], 120, "the engine to be given up", every=0.2)
        seen = load.answered
        poll(lambda: load.answered >= seen + 10, 120, "the other engine to answer")
        running.workers[running.workers.index(silent)] = running.cluster.start_worker()
        after = running.wait_ready()
    finally:
        load.stop()
        running.cluster.kill(silent)
    assert load.wrong == []
    assert (after[0]["pid"], after[0]["restarts"]) == (before[0]["pid"], before[0]["restarts"]), "the other went on"


def test_without_its_cluster_the_service_holds_requests_and_goes_on_with_the_next(running: Running) -> None:
    """The last test: nothing of the first cluster is left."""
    running.wait_ready()
    service: ServiceProcess = running.service
    expected = embed(service, TEXTS[:2])
    running.cluster.kill(running.head)
    for worker in running.workers:
        running.cluster.kill(worker)
    _, body = poll(lambda: (found := service.health())[0] == 503 and found[1]["phase"] == "connecting" and found, 90, "a red /health")
    assert body["status"] == "loading" and running.cluster.address in body["progress"]["text"]
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(embed, service, TEXTS[:2])
        running.head = running.cluster.start_head()
        running.workers = [running.cluster.start_worker(), running.cluster.start_worker()]
        assert abs(held.result() - expected).max() < 1e-4
    running.wait_ready()


def test_when_the_service_ends_its_engines_are_gone(running: Running) -> None:
    pids = [line["pid"] for line in running.wait_ready()]
    assert running.service.terminate(60) == 0
    poll(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), 30, "the engines' end")
