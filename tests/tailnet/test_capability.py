"""REQUIRE_CAPABILITY: who was not granted it is refused under both names, and nobody but a sidecar can say who was."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest

from tests.stack.conftest import QUESTION
from tests.support.qmdctl_cli import Qmdctl, docker
from tests.support.service import poll
from tests.support.tailnet import CAPABILITY, Tailnet
from tests.support.tailnet_project import HOSTS

pytestmark = [pytest.mark.docker, pytest.mark.tailnet, pytest.mark.slow, pytest.mark.timeout(900)]
FORGED = {"Tailscale-User-Login": "owner@example.com", "Tailscale-App-Capabilities": json.dumps({CAPABILITY: [{}]})}
FORGE = """
import json, sys, urllib.error, urllib.request
request = urllib.request.Request("http://embed:8001/v1/models", headers=json.loads(sys.argv[1]))
try:
    print(urllib.request.urlopen(request).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""
CHAT = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 4}


@pytest.fixture(scope="module")
def locked(true_stack: Qmdctl) -> Qmdctl:
    """The true stack with the capability demanded: test_state.py has started it so, if it ran."""
    if true_stack.value("REQUIRE_CAPABILITY") != CAPABILITY:
        true_stack.set(REQUIRE_CAPABILITY=CAPABILITY)
        done = true_stack.run("up", "--skip-checks", "--json", seconds=800)
        assert done.status == 0, done.err
    return true_stack


@pytest.fixture
def granted(tailnet: Tailnet, locked: Qmdctl) -> Iterator[None]:
    tailnet.set(app_caps={CAPABILITY: [{}]})
    poll(lambda: tailnet.ask(tailnet.url(HOSTS[0], "/v1/models"))["status"] == 200, 20, "the grant")
    yield
    tailnet.reset()


@pytest.mark.parametrize("headers", [{}, FORGED], ids=["plain", "forged"])
def test_without_a_grant_both_names_refuse(tailnet: Tailnet, locked: Qmdctl, headers: dict[str, str]) -> None:
    tailnet.reset()
    for host in HOSTS:
        poll(lambda host=host: tailnet.ask(tailnet.url(host, "/v1/models"), headers=headers)["status"] == 403, 20, "the refusal")
        answer = tailnet.ask(tailnet.url(host, "/v1/chat/completions"), json=CHAT, headers=headers)
        assert answer["status"] == 403, answer


def test_with_a_grant_both_names_answer(tailnet: Tailnet, granted: None) -> None:
    embedding = tailnet.ask(tailnet.url("qmd-embed", "/v1/embeddings"), json={"input": "red"})
    assert embedding["status"] == 200, embedding
    for host in HOSTS:  # qmd-vllm leads to the embed service, which checks, and forwards
        answer = tailnet.ask(tailnet.url(host, "/v1/chat/completions"), json=CHAT)
        assert answer["status"] == 200, answer
        assert json.loads(answer["body"])["choices"]
    stream = tailnet.ask(tailnet.url("qmd-vllm", "/v1/chat/completions"), json={**CHAT, "stream": True}, stream=True)
    assert stream["events"][-1] == "[DONE]"


@pytest.mark.parametrize("network", ["edge-embed", "edge-vllm", "backend"])
def test_a_neighbour_container_cannot_forge_the_headers(granted: None, locked: Qmdctl, network: str) -> None:
    full = f"{locked.value('COMPOSE_PROJECT_NAME')}_{network}"
    status = docker("run", "--rm", "--network", full, "qmd-test/base:bookworm", "python3", "-c", FORGE, json.dumps(FORGED))
    assert status == "403"


def test_the_published_port_cannot_either(granted: None, locked: Qmdctl) -> None:
    url = f"http://127.0.0.1:{locked.value('EMBED_PORT')}/v1/models"
    assert httpx.get(url, headers=FORGED, trust_env=False).status_code == 403
