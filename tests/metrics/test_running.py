"""A real Prometheus on the shipped files: targets are up, expressions have data, every alert fires at its fault and clears after."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from tests.metrics.conftest import DAY, SIDECARS, Watched, write_certificate
from tests.support.monitoring import board_expressions, rule_groups
from tests.support.service import poll

pytestmark = [pytest.mark.metrics, pytest.mark.slow]
SHORT = [f"note {n}: where the sidecar keeps its name" for n in range(6)]


@pytest.fixture(scope="module", autouse=True)
def traffic(watched: Watched) -> Iterator[threading.Event]:
    """A client that searches and indexes in small pieces, all the time until the event: figures are rates."""
    stop = threading.Event()

    def run() -> None:
        with watched.service.client() as client:
            while not stop.wait(0.1):
                client.post("/v1/embeddings", json={"input": SHORT}, headers={"x-lane": "bulk"})
                client.post("/v1/rerank", json={"query": SHORT[0], "documents": SHORT})

    thread = threading.Thread(target=run)
    thread.start()
    yield stop
    stop.set()
    thread.join()


@pytest.fixture
def calm(watched: Watched) -> None:
    """Nothing fires, of earlier tests neither."""
    poll(lambda: not watched.prometheus.alerts(), 90, "no alert", every=0.2)
    watched.inbox.forget()


def test_every_target_is_up(watched: Watched) -> None:
    wanted = {"embed", "vllm", *SIDECARS, "exporter", "node-exporter", "alertmanager", "prometheus"}

    def all_up() -> bool:
        targets = watched.prometheus.targets()
        return targets.keys() == wanted and all(health == "up" for health, _ in targets.values())

    poll(all_up, 60, f"every target: {watched.prometheus.targets()}", every=0.2)


def test_every_expression_of_the_board_returns_data(watched: Watched) -> None:
    """Verbatim, but for the lengths of ranges: [5m] needs no more than two scrapes to have a rate."""
    left = dict.fromkeys(expression for _, expression in board_expressions())
    assert len(left) > 40

    def all_there() -> bool:
        for expression in list(left):
            if watched.prometheus.query(expression):
                del left[expression]
        return not left

    try:
        poll(all_there, 60, "data", every=0.5)
    except TimeoutError:
        pytest.fail(f"no data: {list(left)}")


def test_every_recorded_figure_has_data_and_nothing_fires(watched: Watched) -> None:
    records = [rule["record"] for group in rule_groups() for rule in group["rules"] if "record" in rule]
    for record in records:
        poll(lambda record=record: watched.prometheus.query(record), 30, record, every=0.2)
    poll(lambda: not watched.prometheus.alerts(), 60, "no alert", every=0.2)


def fires_and_clears(watched: Watched, name: str, mend: object) -> None:
    """The alert fires and its owner is told; after `mend()` it clears and he is told that as well."""
    alert = watched.prometheus.wait_alert(name)
    assert alert["annotations"]["summary"]
    assert "<no value>" not in str(alert["annotations"]), alert["annotations"]
    assert "{{" not in str(alert["annotations"])
    poll(lambda: watched.inbox.told(name, "firing"), 30, f"{name} to be told", every=0.2)
    if callable(mend):
        mend()
    watched.prometheus.wait_alert(name, firing=False)
    poll(lambda: watched.inbox.told(name, "resolved"), 30, f"the end of {name} to be told", every=0.2)


def test_an_engine_that_is_killed(watched: Watched, calm: None) -> None:
    os.kill(int(watched.service.health()[1]["engine"]["pid"]), signal.SIGKILL)
    fires_and_clears(watched, "EngineRestarted", watched.service.wait_healthy)


def test_a_service_that_is_not_warm(watched: Watched, calm: None) -> None:
    """A stopped HTTP process answers no scrape, and a killed engine has to load."""
    process = watched.service.process
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)

    def mend() -> None:
        os.kill(process.pid, signal.SIGCONT)
        watched.service.wait_healthy()

    try:
        fires_and_clears(watched, "EmbedNotReady", mend)
    finally:
        os.kill(process.pid, signal.SIGCONT)


def test_texts_that_are_cut(watched: Watched, calm: None) -> None:
    stop = threading.Event()

    def run() -> None:
        with watched.service.client() as client:
            while not stop.wait(0.2):
                client.post("/v1/embeddings", json={"input": ["far too long " * 400] * 4})

    thread = threading.Thread(target=run)
    thread.start()

    def mend() -> None:
        stop.set()
        thread.join()

    try:
        fires_and_clears(watched, "InputsTruncated", mend)
    finally:
        mend()


def test_a_device_that_is_full(watched: Watched, calm: None) -> None:
    with watched.service.client() as client:
        answer = client.post("/v1/embeddings", json={"input": [f"note {n}" for n in range(40)]})
        assert answer.status_code == 200
    fires_and_clears(watched, "OutOfMemorySplits", None)


def test_searches_that_take_long(watched: Watched, calm: None, traffic: threading.Event) -> None:
    """Ten searches wait for a device that computes nothing for some seconds. Beside them nobody searches: p95 is of all that do."""
    traffic.set()
    engine = int(watched.service.health()[1]["engine"]["pid"])

    def search(number: int) -> int:
        with watched.service.client() as client:
            documents = [f"{number} {text}" for text in SHORT]
            return client.post("/v1/rerank", json={"query": "the sidecar", "documents": documents}).status_code

    os.kill(engine, signal.SIGSTOP)
    try:
        began = time.monotonic()
        with ThreadPoolExecutor(10) as pool:
            searching = [pool.submit(search, number) for number in range(10)]
            poll(lambda: time.monotonic() - began > 7, 20, "searches to be slow", every=0.2)
            os.kill(engine, signal.SIGCONT)
            assert {future.result() for future in searching} == {200}
    finally:
        os.kill(engine, signal.SIGCONT)
    fires_and_clears(watched, "SearchSlow", None)


def test_a_certificate_that_is_not_renewed(watched: Watched, calm: None) -> None:
    sidecar = watched.sidecars["ts-embed"]
    file = sidecar.folder / f"{sidecar.domain}.crt"
    write_certificate(file, sidecar.domain, 5)
    fires_and_clears(watched, "CertificateExpiresSoon", lambda: write_certificate(file, sidecar.domain, 60))


def test_a_login_that_ends(watched: Watched, calm: None) -> None:
    sidecar = watched.sidecars["ts-vllm"]
    sidecar.key_ends(datetime.now(UTC).timestamp() + 3 * DAY)
    fires_and_clears(watched, "KeyExpiresSoon", lambda: sidecar.key_ends(datetime.now(UTC).timestamp() + 90 * DAY))


def test_a_sidecar_that_left_the_tailnet(watched: Watched, calm: None) -> None:
    sidecar = watched.sidecars["ts-embed"]
    sidecar.broken = True

    def mend() -> None:
        sidecar.broken = False

    fires_and_clears(watched, "SidecarOffline", mend)


def test_a_serve_config_that_is_not_in_force(watched: Watched, calm: None) -> None:
    sidecar, serve = watched.sidecars["ts-vllm"], watched.sidecars["ts-vllm"].serve
    sidecar.serve = {}

    def mend() -> None:
        sidecar.serve = serve

    fires_and_clears(watched, "SidecarServesNothing", mend)


def test_a_funnel(watched: Watched, calm: None) -> None:
    sidecar, serve = watched.sidecars["ts-embed"], watched.sidecars["ts-embed"].serve
    sidecar.serve = {**serve, "AllowFunnel": {f"{sidecar.domain}:443": True}}

    def mend() -> None:
        sidecar.serve = serve

    fires_and_clears(watched, "FunnelOpen", mend)


def test_a_disk_that_fills(watched: Watched, calm: None) -> None:
    file = watched.disk / "weights"
    file.write_bytes(b"\0" * 3_900_000)
    fires_and_clears(watched, "DiskAlmostFull", file.unlink)


def test_an_exporter_that_is_gone(watched: Watched, calm: None) -> None:
    """node-exporter, whose disk is gone with it: the last of these tests that needs it."""
    watched.processes.end("node-exporter")
    alert = watched.prometheus.wait_alert("TargetDown")
    assert alert["labels"]["instance"] == "node-exporter"


def test_every_alert_has_been_made_to_fire(watched: Watched) -> None:
    alerts = {rule["alert"] for group in rule_groups() for rule in group["rules"] if "alert" in rule}
    poll(lambda: alerts <= watched.inbox.ever, 30, f"{alerts - watched.inbox.ever} to be told", every=0.2)
