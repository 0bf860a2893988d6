"""A head and two workers in containers of the project's own image: work spreads, a killed worker loses no request, it rejoins."""

from __future__ import annotations

import os
import resource
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from tests.service.conftest import TEXTS, Load, embed
from tests.support.qmdctl_cli import DOCKER_HOST, docker
from tests.support.service import ROOT, ServiceProcess, free_port, minilm_path, poll
from tests.support.stack_images import BASE_IMAGE, build, need_engine

pytestmark = [pytest.mark.ray, pytest.mark.docker, pytest.mark.timeout(900)]

FILE = ROOT / "tests/ray/compose.yaml"
WORKERS = {"10.233.77.11": "qmd-test-ray-1", "10.233.77.12": "qmd-test-ray-2"}


class Head:
    """The service in the head's container, as `Load` and `embed` want it."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=120, trust_env=False)

    def health(self) -> dict[str, Any]:
        try:
            with self.client() as client:
                return client.get("/health").json()  # type: ignore[no-any-return]
        except httpx.TransportError as error:
            return {"status": str(error), "engines": []}

    def ready_nodes(self) -> set[str]:
        return {engine["node"] for engine in self.health()["engines"] if engine["phase"] == "ready"}


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    need_engine()
    build("qmd-test/embed-ray:tests", ROOT / "Dockerfile.embed", {"BASE_IMAGE": BASE_IMAGE, "VARIANT": "ray"})
    token: Path = tmp_path_factory.mktemp("token") / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o444)  # the containers' user is another
    port = free_port()
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    values = {
        "DOCKER_HOST": DOCKER_HOST,
        "EMBED_PORT": str(port),
        "MINILM": minilm_path(),
        "RAY_TOKEN_FILE": str(token),
        "RAY_NODE_IP": "127.0.0.1",  # for ports that the file takes away
        "RAY_ADDRESS": "unused:0",
        **({} if limit == resource.RLIM_INFINITY else {"MEMLOCK_BYTES": str(limit)}),
    }

    def compose(*arguments: str) -> None:
        command = ["docker", "compose", "--project-name", "qmd-test-ray", "--file", str(FILE), *arguments]
        done = subprocess.run(command, env={**os.environ, **values}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    found = Head(port)
    try:
        compose("up", "--detach", "--no-build")
        try:
            poll(lambda: found.ready_nodes() == set(WORKERS), 400, "an engine in each worker", 0.5)
        except TimeoutError as error:
            logs = "\n".join(docker("logs", "--tail", "30", name) for name in ("qmd-test-ray-head", *WORKERS.values()))
            raise TimeoutError(f"{error}: {found.health()}\n{logs}") from None
        yield found
    finally:
        compose("down", "--volumes", "--timeout", "1")


def test_a_killed_worker_loses_no_request_and_rejoins(head: Head) -> None:
    service = cast(ServiceProcess, head)
    embed(service, [f"{n} {text}" for n in range(60) for text in TEXTS])
    assert all(engine["micro_batches"] >= 3 for engine in head.health()["engines"]), "micro-batches spread"
    assert all(docker("inspect", "--format", "{{.State.Health.Status}}", name) == "healthy" for name in WORKERS.values())
    node, name = next(iter(WORKERS.items()))
    load = Load(service)
    try:
        poll(lambda: load.answered >= 10, 120, "the load to run")
        docker("kill", name)
        poll(lambda: node not in head.ready_nodes(), 120, "its end to be seen")
        seen = load.answered
        poll(lambda: load.answered >= seen + 10, 120, "the other worker to answer")
        docker("start", name)
        poll(lambda: head.ready_nodes() == set(WORKERS), 300, "the worker to rejoin", 0.5)
    finally:
        load.stop()
    assert load.wrong == []


def test_after_a_pause_every_worker_has_its_engine_again(head: Head) -> None:
    service = cast(ServiceProcess, head)
    poll(lambda: head.ready_nodes() == set(WORKERS), 300, "an engine in each worker", 0.5)
    expected = embed(service, TEXTS[:2])
    control = ("exec", "qmd-test-ray-head", "python", "-m", "embed_service", "control")
    assert '"state":"paused"' in docker(*control, "pause").replace(" ", "")
    assert head.ready_nodes() == set()
    assert '"state":"serving"' in docker(*control, "resume").replace(" ", "")
    assert abs(embed(service, TEXTS[:2]) - expected).max() < 1e-5
    poll(lambda: head.ready_nodes() == set(WORKERS), 300, "an engine in each worker again", 0.5)


def test_the_tokeniser_came_from_a_worker(head: Head) -> None:
    """The head box has no model: what cuts texts is a copy of what the engines' boxes have."""
    with head.client() as client:
        assert client.post("/tokenize", json={"input": "a note"}).status_code == 200
    assert "/m" not in docker("inspect", "--format", "{{range .Mounts}}{{.Destination}} {{end}}", "qmd-test-ray-head").split()
