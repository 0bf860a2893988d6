"""What a sidecar does with a request before the service sees it. The sidecars are the project's, the services are FAKE (echo.py)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.qmdctl_cli import Qmdctl, docker
from tests.support.service import poll
from tests.support.tailnet import CAPABILITY, Tailnet
from tests.support.tailnet_project import FAKE_HOSTS
from tests.support.tailnet_wire import connections, fins_held_back

pytestmark = [pytest.mark.docker, pytest.mark.tailnet, pytest.mark.slow, pytest.mark.timeout(900)]
EMBED, VLLM = FAKE_HOSTS
FORGED = {
    "Tailscale-User-Login": "owner@example.com",
    "Tailscale-User-Name": "Owner",
    "Tailscale-App-Capabilities": json.dumps({CAPABILITY: [{"role": "admin"}]}),
    "X-Forwarded-For": "127.0.0.1",
}
FORGE = """
import sys, urllib.request
request = urllib.request.Request(sys.argv[1], headers={"Tailscale-User-Login": "owner@example.com"})
print(urllib.request.urlopen(request).read().decode())
"""


def seen(tailnet: Tailnet, host: str, **request: Any) -> dict[str, str]:
    """The headers with which the service got the request."""
    answer = tailnet.ask(tailnet.url(host), **request)
    assert answer.get("status") == 200, answer
    headers: dict[str, str] = json.loads(answer["body"])["headers"]
    return headers


def test_who_asks_stands_in_the_headers_whatever_the_client_sends(tailnet: Tailnet, fake_stack: Qmdctl) -> None:
    laptop = tailnet.node("laptop")
    for host in FAKE_HOSTS:
        headers = seen(tailnet, host, headers=FORGED)
        assert headers["tailscale-user-login"].startswith("user-")
        assert headers["tailscale-user-name"].startswith("User ")
        assert headers["tailscale-app-capabilities"] == "{}"
        assert headers["x-forwarded-for"] == laptop["Addresses"][0].split("/")[0]
        assert headers["host"] == headers["x-forwarded-host"] == f"{host}.{tailnet.suffix}"
        assert "tailscale-funnel-request" not in headers


def test_a_granted_capability_is_passed_on(tailnet: Tailnet, fake_stack: Qmdctl) -> None:
    granted = [{"role": "user"}]
    tailnet.set(app_caps={CAPABILITY: granted, "example.com/cap/other": [{}]})
    try:
        poll(lambda: seen(tailnet, EMBED)["tailscale-app-capabilities"] != "{}", 20, "the capability")
        for host in FAKE_HOSTS:
            assert json.loads(seen(tailnet, host, headers=FORGED)["tailscale-app-capabilities"]) == {CAPABILITY: granted}
    finally:
        tailnet.reset()


@contextmanager
def served_text(path: Path, text: str, *, rename: bool) -> Iterator[None]:
    """The serve config with one more path, written in place or as editors do it, by a rename; at the end as it was."""
    before = path.read_text()
    config = json.loads(before)
    web = config["Web"]["${TS_CERT_DOMAIN}:443"]
    web["Handlers"]["/changed"] = {"Text": text}

    def write(content: str) -> None:
        if rename:
            path.with_suffix(".new").write_text(content)
            os.replace(path.with_suffix(".new"), path)
        else:
            path.write_text(content)

    write(json.dumps(config))
    yield
    write(before)


@pytest.mark.parametrize("rename", [False, True])
def test_a_changed_serve_config_takes_effect_without_a_restart(tailnet: Tailnet, fake_stack: Qmdctl, rename: bool) -> None:
    container = f"{fake_stack.value('COMPOSE_PROJECT_NAME')}-ts-embed-1"
    started = docker("inspect", "--format", "{{.State.StartedAt}}", container)

    def text() -> str:
        return str(tailnet.ask(tailnet.url(EMBED, "/changed")).get("body", ""))

    with served_text(fake_stack.folder / "tailscale/embed/serve.json", f"new {rename}", rename=rename):
        poll(lambda: text() == f"new {rename}", 20, "the new serve config", 0.2)
    poll(lambda: '"path": "/changed"' in text(), 20, "the former serve config", 0.2)
    assert docker("inspect", "--format", "{{.State.StartedAt}}", container) == started


def test_a_laptop_without_a_grant_is_refused_and_let_in_again(tailnet: Tailnet, fake_stack: Qmdctl) -> None:
    tailnet.jail(EMBED, "laptop")
    try:
        poll(lambda: "Timeout" in tailnet.ask(tailnet.url(EMBED), timeout=2).get("error", ""), 30, "the refusal")
        assert tailnet.ask(tailnet.url(VLLM))["status"] == 200
    finally:
        tailnet.jail(EMBED, "laptop", jailed=False)
    poll(lambda: tailnet.ask(tailnet.url(EMBED), timeout=5).get("status") == 200, 30, "the laptop being let in")


def test_a_post_meets_a_connection_that_its_service_has_closed(tailnet: Tailnet, fake_stack: Qmdctl) -> None:
    """Why the services keep idle connections for 120 s: serve's pool keeps them for 90 s, and a POST is not sent twice.

    Both services are uvicorn; embed's has uvicorn's own 5 s, vllm's 120 s. In the field the POST has to come in the moment in which the
    service closes. Here that moment is made long: the packets by which a service says that it has closed are held back.
    """
    project = fake_stack.value("COMPOSE_PROJECT_NAME")
    embed, vllm = f"{project}-embed-1", f"{project}-vllm-1"
    with fins_held_back(embed), fins_held_back(vllm):
        for host in FAKE_HOSTS:
            seen(tailnet, host, json={})
        kept = connections(vllm, 8000)
        poll(lambda: connections(embed, 8001, state="fin-wait-1"), 30, "the closing of the idle connection", 0.2)
        broken = tailnet.ask(tailnet.url(EMBED), json={})
        assert broken["status"] == 502, broken
        assert tailnet.ask(tailnet.url(VLLM), json={})["status"] == 200
        assert kept & connections(vllm, 8000), "the POST went over another connection"
    poll(lambda: tailnet.ask(tailnet.url(EMBED), json={}).get("status") == 200, 20, "the service again")


def test_a_neighbour_on_the_service_s_network_can_forge_headers(tailnet: Tailnet, fake_stack: Qmdctl) -> None:
    """Which is why the embed service believes a sidecar's address alone (test_capability.py)."""
    network = f"{fake_stack.value('COMPOSE_PROJECT_NAME')}_edge-embed"
    answer = docker("run", "--rm", "--network", network, "qmd-test/base:bookworm", "python3", "-c", FORGE, "http://embed:8001/")
    assert json.loads(answer)["headers"]["tailscale-user-login"] == "owner@example.com"


def test_a_broken_serve_config_is_named_and_mended(tailnet: Tailnet, fake_stack: Qmdctl) -> None:
    """serve_config_broken among the symptoms."""
    path = fake_stack.folder / "tailscale/vllm/serve.json"
    before = path.read_text()
    path.write_text(before + "// a comment")
    try:
        container = f"{fake_stack.value('COMPOSE_PROJECT_NAME')}-ts-vllm-1"
        poll(lambda: docker("inspect", "--format", "{{.RestartCount}}", container) != "0", 30, "the sidecar's end")
        done = fake_stack.run("up", "--skip-checks", seconds=100)
        assert done.status in (1, 2), done.err
        assert "serve.json" in done.err
    finally:
        path.write_text(before)
    poll(lambda: tailnet.ask(tailnet.url(VLLM), timeout=5).get("status") == 200, 60, "the name again")
