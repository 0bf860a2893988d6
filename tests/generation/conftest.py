"""The service in front of a real generation server, and in front of a scripted one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from demo.smollm2 import prepare
from tests.generation.scripted import ScriptedServer
from tests.support.service import ServiceProcess, poll
from tests.support.smollm2 import GenerationServer

DEADLINE_SECONDS = 4  # of the service in front of the scripted server
KEY = "key-of-the-generation-server"


def wait_listening(service: ServiceProcess) -> None:
    """Forwarding needs no model of ours: the service is of use as soon as it listens."""

    def listening() -> bool:
        try:
            return httpx.get(f"{service.url}/livez", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    poll(listening, 60, "the service to listen")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The repository of SmolLM2-135M-Instruct."""
    return prepare()


@pytest.fixture(scope="session")
def generation(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GenerationServer]:
    """A real server of text, for the tests that leave it alive."""
    with GenerationServer(smollm2, tmp_path_factory.mktemp("generation") / "generation.log") as server:
        yield server.wait_ready()


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., ServiceProcess]]:
    """Start the service with settings of the test's own; it listens on return."""
    started: list[ServiceProcess] = []

    def start(port: int | None = None, **environment: str) -> ServiceProcess:
        service = ServiceProcess(environment, tmp_path_factory.mktemp("forwarding") / "service.log", port).start()
        started.append(service)
        wait_listening(service)
        return service

    yield start
    for service in started:
        service.__exit__(None, None, None)


@pytest.fixture(scope="session")
def forwarding(generation: GenerationServer, start: Callable[..., ServiceProcess]) -> Iterator[httpx.Client]:
    """A client of the service in front of the real generation server."""
    with start(GENERATION_URL=generation.url).client() as client:
        yield client


@pytest.fixture(scope="session")
def scripted_service(
    start: Callable[..., ServiceProcess], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ScriptedServer, ServiceProcess]]:
    key_file = tmp_path_factory.mktemp("key") / "key"
    key_file.write_text(f"{KEY}\n")
    with ScriptedServer() as server:
        yield (
            server,
            start(
                GENERATION_URL=f"{server.url}/v1/",  # as people paste it
                GENERATION_API_KEY_FILE=str(key_file),
                REQUEST_DEADLINE_SECONDS=str(DEADLINE_SECONDS),
            ),
        )


@pytest.fixture
def scripted(scripted_service: tuple[ScriptedServer, ServiceProcess]) -> ScriptedServer:
    """The fake behind `scripted_client`, told nothing yet. What the service remembers of it stays."""
    server, _ = scripted_service
    server.reset()
    return server


@pytest.fixture
def scripted_client(scripted_service: tuple[ScriptedServer, ServiceProcess], scripted: ScriptedServer) -> Iterator[httpx.Client]:
    """A client of the service in front of the scripted server."""
    with scripted_service[1].client() as client:
        yield client
