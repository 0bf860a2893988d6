"""The profile `metrics` beside the true stack: Prometheus, in its container and on the shipped configuration, reaches every service.

embed demands a capability by now (test_state.py), which Prometheus has not: it is let in by its name.
"""

from __future__ import annotations

import json
import re

import pytest

from tests.support.metrics_images import build_metrics_images
from tests.support.monitoring import Prometheus, board_expressions
from tests.support.qmdctl_cli import Qmdctl, docker
from tests.support.service import free_port, poll
from tests.support.tailnet import Tailnet

pytestmark = [pytest.mark.docker, pytest.mark.tailnet, pytest.mark.metrics, pytest.mark.slow, pytest.mark.timeout(900)]
INSTANCES = {"embed", "vllm", "ts-embed", "ts-vllm", "exporter", "node-exporter", "alertmanager", "prometheus"}
KEY_ENDS = "qmd:key_seconds:left"  # nothing: the nodes here are tagged, and their logins do not end


@pytest.fixture(scope="module")
def prometheus(true_stack: Qmdctl) -> Prometheus:
    build_metrics_images()
    true_stack.set(COMPOSE_PROFILES="generation,tailnet,metrics", PROMETHEUS_PORT=str(free_port()), GRAFANA_PORT=str(free_port()))
    done = true_stack.run("up", "--skip-checks", "--json", seconds=400)
    assert done.status == 0, done.err
    return Prometheus(f"http://127.0.0.1:{true_stack.value('PROMETHEUS_PORT')}")


def test_every_target_is_up_though_embed_demands_a_capability(prometheus: Prometheus) -> None:
    def all_up() -> bool:
        targets = prometheus.targets()
        return targets.keys() == INSTANCES and all(health == "up" for health, _ in targets.values())

    poll(all_up, 120, f"every target to be up: {prometheus.targets()}", every=0.5)


def test_qmdctl_tells_of_them(true_stack: Qmdctl, prometheus: Prometheus) -> None:
    status = true_stack.run("status", "--json")
    assert status.status == 0, status.out
    services = {one["service"]: one for one in status.json["services"]}
    assert services["grafana"]["url"] == f"http://127.0.0.1:{true_stack.value('GRAFANA_PORT')}"
    assert {name: one["phase"] for name, one in services.items() if one["phase"] != "ready"} == {}
    links = {f"{link['service']} {link['link']}": link for link in true_stack.run("health", "--json").json["links"]}
    assert links["prometheus targets"]["state"] == "ok", links["prometheus targets"]
    assert links["prometheus targets"]["detail"] == "8 of 8 targets are up"


def test_every_expression_has_data_of_the_real_parts(tailnet: Tailnet, true_stack: Qmdctl, prometheus: Prometheus) -> None:
    """The sidecars' own metrics and certificates, the real vLLM, the box: figures over minutes have none but 0, and are there."""
    left = {expression for _, expression in board_expressions()} - {KEY_ENDS}

    def all_there() -> bool:
        left.difference_update([expression for expression in left if prometheus.query(expression)])
        return not left

    try:
        poll(all_there, 150, "data", every=2)
    except TimeoutError:
        pytest.fail(f"no data: {sorted(left)}")
    assert prometheus.query(KEY_ENDS) == []
    ends = {one["metric"]["domain"]: float(one["value"][1]) for one in prometheus.query("qmd:certificate_seconds:left")}
    assert ends.keys() == {f"{name}.{tailnet.suffix}" for name in ("qmd-embed", "qmd-vllm")}
    assert all(80 * 86400 < seconds < 91 * 86400 for seconds in ends.values())
    assert {one["metric"]["instance"] for one in prometheus.query("qmd_sidecar_proxies == 1")} == {"ts-embed", "ts-vllm"}
    assert not {one["metric"]["alertname"] for one in prometheus.query('ALERTS{alertstate="firing"}')} - {"DiskAlmostFull"}


def test_a_password_was_made_and_stands_in_no_log(true_stack: Qmdctl, prometheus: Prometheus) -> None:
    password = docker("exec", "qmd-grafana", "cat", "/var/lib/grafana/admin-password")
    assert re.fullmatch(r"[A-Za-z0-9_-]{32}", password)
    assert password not in docker("logs", "qmd-grafana")
    assert password not in json.dumps(json.loads(docker("inspect", "qmd-grafana")))


def test_the_monitors_reach_nothing_outside_and_only_loopback_reaches_them(true_stack: Qmdctl, prometheus: Prometheus) -> None:
    for name in ("qmd-prometheus", "qmd-grafana"):
        for bindings in json.loads(docker("inspect", name))[0]["NetworkSettings"]["Ports"].values():
            assert {one["HostIp"] for one in bindings or ()} <= {"127.0.0.1"}
    mounts = json.loads(docker("inspect", "qmd-exporter"))[0]["Mounts"]
    assert {(mount["Destination"], mount["RW"]) for mount in mounts if mount["Destination"].startswith("/sidecars")} == {
        ("/sidecars/ts-embed", False),
        ("/sidecars/ts-vllm", False),
    }
    seen = docker("exec", "qmd-exporter", "python", "-c", "import os; print(sum((f for *_, f in os.walk('/sidecars')), []))")
    assert "key" not in seen.replace("tailscaled.sock", "")


def test_a_sidecar_that_was_killed_comes_back_beside_its_old_socket(true_stack: Qmdctl, prometheus: Prometheus) -> None:
    """containerboot takes a socket that is there for one that answers."""
    docker("kill", "qmd-ts-vllm")
    assert docker("exec", "qmd-exporter", "python", "-c", "import os; print(os.path.exists('/sidecars/ts-vllm/tailscaled.sock'))") == "True"
    done = true_stack.run("up", "--skip-checks", "--json", seconds=200)
    assert done.status == 0, done.err
    assert int(docker("inspect", "qmd-ts-vllm", "--format", "{{.RestartCount}}")) == 0
    answering = 'qmd_sidecar_online{instance="ts-vllm"} == 1'
    poll(lambda: prometheus.query(answering), 60, "the sidecar's metrics", every=0.5)


def test_without_the_profile_they_go(true_stack: Qmdctl, prometheus: Prometheus) -> None:
    prometheus.client.close()
    true_stack.set(COMPOSE_PROFILES="generation,tailnet")
    done = true_stack.run("up", "--skip-checks", "--json", seconds=300)
    assert done.status == 0, done.err
    left = docker(
        "ps", "--all", "--format", "{{.Names}}", "--filter", f"label=com.docker.compose.project={true_stack.value('COMPOSE_PROJECT_NAME')}"
    )
    assert set(left.split()) == {"qmd-embed", "qmd-vllm", "qmd-ts-embed", "qmd-ts-vllm"}
