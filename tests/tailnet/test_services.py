"""TAILNET_SERVICE=1 on real tailscaleds: what is served and advertised. Fail-over is done by Tailscale's control plane and not run here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.qmdctl_cli import Qmdctl, docker
from tests.support.tailnet import Tailnet
from tests.support.tailnet_project import FAKE_HOSTS, make_fake_project, remove

pytestmark = [pytest.mark.docker, pytest.mark.tailnet, pytest.mark.slow, pytest.mark.timeout(900)]
SHARED = {"ts-embed": ("qmd-embed", "http://embed:8001"), "ts-vllm": ("qmd-vllm", "http://vllm:8000")}
ADVERTISED = """
import base64, json
state = json.load(open("/state/tailscaled.state"))
(profile,) = [value for key, value in state.items() if key.startswith("profile-")]
print(json.dumps(json.loads(base64.b64decode(profile)).get("AdvertiseServices")))
"""


@pytest.fixture
def project(tailnet: Tailnet, tmp_path: Path) -> Iterator[Qmdctl]:
    qmdctl = make_fake_project(tailnet, tmp_path / "project", tmp_path, TAILNET_SERVICE="1")
    yield qmdctl
    remove(qmdctl)


def inside(project: Qmdctl, sidecar: str, *command: str) -> Any:
    return json.loads(docker("exec", f"{project.value('COMPOSE_PROJECT_NAME')}-{sidecar}-1", "tailscale", *command))


def advertised(volume: str) -> Any:
    """What the sidecar whose volume it is will advertise at its next start."""
    return json.loads(docker("run", "--rm", "--volume", f"{volume}:/state:ro", "qmd-test/base:bookworm", "python3", "-c", ADVERTISED))


def test_services_are_served_and_advertised_and_withdrawn_by_down(tailnet: Tailnet, project: Qmdctl) -> None:
    done = project.run("up", "--skip-checks", "--json", seconds=200)
    assert done.status == 0, done.err
    for sidecar, (name, target) in SHARED.items():
        assert inside(project, sidecar, "debug", "prefs")["AdvertiseServices"] == [f"svc:{name}"]
        served = inside(project, sidecar, "serve", "status", "--json")["Services"]
        assert served.keys() == {f"svc:{name}"}
        assert served[f"svc:{name}"]["TCP"] == {"443": {"HTTPS": True}}
        ((host, web),) = served[f"svc:{name}"]["Web"].items()
        assert host == f"{name}.{tailnet.suffix}:443"
        assert web["Handlers"]["/"]["Proxy"] == target
    hashes = {}  # of what a node says about its Services, and whether it advertises them
    for host in FAKE_HOSTS:  # the nodes' own names go on
        assert tailnet.ask(tailnet.url(host))["status"] == 200
        hashes[host] = tailnet.node(host)["Hostinfo"]["ServicesHash"]
    assert project.run("down", seconds=120).status == 0
    for host, before in hashes.items():
        assert tailnet.node(host)["Hostinfo"].get("ServicesHash") != before
    for name in SHARED:
        assert advertised(f"{project.value('COMPOSE_PROJECT_NAME')}_{name}") in (None, [])
