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


@pytest.fixture
def project(tailnet: Tailnet, tmp_path: Path) -> Iterator[Qmdctl]:
    qmdctl = make_fake_project(tailnet, tmp_path / "project", tmp_path, TAILNET_SERVICE="1")
    yield qmdctl
    remove(qmdctl)


def inside(project: Qmdctl, sidecar: str, *command: str) -> Any:
    return json.loads(docker("exec", f"{project.value('COMPOSE_PROJECT_NAME')}-{sidecar}-1", "tailscale", *command))


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
    for host in FAKE_HOSTS:  # the nodes' own names go on
        assert tailnet.ask(tailnet.url(host))["status"] == 200
        assert tailnet.node(host)["Hostinfo"]["ServicesHash"]
    assert project.run("down", seconds=120).status == 0
    for host in FAKE_HOSTS:
        assert not tailnet.node(host)["Hostinfo"].get("ServicesHash")
