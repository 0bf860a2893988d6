"""ENGINES=ray without RAY_ADDRESS, as compose.ray.yaml has it: the cluster begins with the service, and ends with it."""

from __future__ import annotations

import importlib.util
import os
import secrets
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.ray.conftest import QUICK
from tests.ray.test_cluster import control
from tests.service.conftest import TEXTS, embed
from tests.support.ray_cluster import children, command_of
from tests.support.require import require
from tests.support.service import ROOT, ServiceProcess, poll

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def pids_of(service: ServiceProcess, part: str) -> list[int]:
    """The processes below the service's whose command line has this part."""
    assert service.process is not None
    return [pid for pid in children(service.process.pid) if part in command_of(pid)]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    require("ray", importlib.util.find_spec("ray") is not None, "Ray is not installed: make test installs it")
    import ray  # not at the top: a machine without it skips these tests

    folder: Path = tmp_path_factory.mktemp("head")
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    environment = {
        **QUICK,
        "RAY_ENGINES": "1",
        "RAY_NODE_IP": ray.util.get_node_ip_address(),  # type: ignore[no-untyped-call]
        "RAY_NODE_CPUS": "12",  # more than there are ports for workers, and by the next line as on a machine that has as many
        "RAY_worker_maximum_startup_concurrency": "12",
        "RAY_NODE_GPUS": "0",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "CONTROL_SOCKET": str(folder / "control.sock"),
        "PYTHONPATH": str(ROOT),
    }
    with ServiceProcess(environment, folder / "service.log") as started:
        started.wait_healthy(200)
        yield started


def test_after_a_pause_the_engines_come_back_on_the_same_cluster(service: ServiceProcess) -> None:
    expected = embed(service, TEXTS[:2])
    head = pids_of(service, "gcs_server")
    assert len(head) == 1
    assert control(service, "pause")["state"] == "paused"
    assert control(service, "resume", "--timeout", "120")["state"] == "serving"
    assert abs(embed(service, TEXTS[:2]) - expected).max() < 1e-5
    assert pids_of(service, "gcs_server") == head, "a box's node ends with its head, and need not"


def test_when_the_process_that_speaks_to_ray_is_killed_another_begins_another_cluster(service: ServiceProcess) -> None:
    expected = embed(service, TEXTS[:2])
    (head,) = pids_of(service, "gcs_server")
    (driver,) = pids_of(service, "embed_service.cluster --fd")
    with ThreadPoolExecutor(1) as pool:
        os.kill(driver, signal.SIGKILL)
        poll(lambda: service.health()[0] == 503, 60, "the engines' end", every=0.01)
        held = pool.submit(embed, service, TEXTS[:2])
        assert abs(held.result() - expected).max() < 1e-5
    assert pids_of(service, "gcs_server") != [head]
    assert not command_of(head)


def test_when_the_service_is_killed_nothing_of_the_cluster_is_left(service: ServiceProcess) -> None:
    service.wait_healthy()
    assert service.process is not None
    commands = {pid: command for pid in children(service.process.pid) if (command := command_of(pid))}
    for part in ("embed_service.cluster", "ray start", "gcs_server", "raylet", "EngineActor"):
        assert any(part in command for command in commands.values()), part
    # Ray's own, which try to report the raylet's end for a minute, then end too.
    commands = {pid: command for pid, command in commands.items() if not command.startswith(("ray::Dashboard", "ray::RuntimeEnv"))}
    service.process.kill()
    service.process.wait()

    def left() -> list[str]:
        return [command for pid, command in commands.items() if command_of(pid)]  # a zombie has none

    try:
        poll(lambda: not left(), 90, "the cluster's end")
    except TimeoutError as error:
        raise TimeoutError(f"{error}: {left()}") from None
