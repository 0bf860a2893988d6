"""What qmd-vllm leads to where keys are demanded: the service in front of a scripted server, and all that QMD clients ask of that name."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from tests.generation.scripted import ScriptedServer
from tests.support.service import ServiceProcess
from tests.support.wire import assert_error

MESSAGES = [{"role": "user", "content": "hello"}]
BEARER = {"authorization": "Bearer of-a-client"}


@pytest.fixture(scope="module")
def locked(
    scripted_service: tuple[ScriptedServer, ServiceProcess],
    start: Callable[..., ServiceProcess],
    tmp_path_factory: pytest.TempPathFactory,
) -> ServiceProcess:
    """Its port is the one to which both names lead."""
    keys = tmp_path_factory.mktemp("locked") / "keys"
    keys.write_text("of-a-client\n")
    return start(GENERATION_URL=scripted_service[0].url, API_KEYS_FILE=str(keys))


def test_what_clients_ask_of_the_generation_name(locked: ServiceProcess, scripted: ScriptedServer) -> None:
    locked.wait_healthy()
    with locked.client(headers=BEARER) as client:
        assert client.get("/health").json()["status"] == "ok"
        assert "served" in [model["id"] for model in client.get("/v1/models").json()["data"]]
        assert client.get("/metrics").status_code == 200
        for model in ({}, {"model": "default"}, {"model": "generate"}, {"model": "Qwen/Qwen3-8B"}):
            for path, body in (("/v1/chat/completions", {"messages": MESSAGES}), ("/v1/completions", {"prompt": "x"})):
                assert client.post(path, json={**body, **model, "max_tokens": 4}).status_code == 200
    assert {call.body["model"] for call in scripted.calls} == {"served"}
    assert all("of-a-client" not in str(call.headers) for call in scripted.calls)


def test_without_a_key_nothing_reaches_the_generation_server(locked: ServiceProcess, scripted: ScriptedServer) -> None:
    locked.wait_healthy()
    with httpx.Client(base_url=locked.url, timeout=60) as client:
        assert client.get("/health").status_code == 200, "clients probe it, some without their key"
        for path in ("/v1/chat/completions", "/v1/completions"):
            assert_error(client.post(path, json={"messages": MESSAGES, "prompt": "x"}), 401)
        for path in ("/v1/models", "/metrics"):
            assert_error(client.get(path), 401)
    assert scripted.calls == []
