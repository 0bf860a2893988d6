"""The profile `metrics` as qmdctl starts it, around the true embed service in containers. FAKE: Grafana, in the image of that name.

tests/tailnet/test_metrics.py has the sidecars and vLLM beside it. Here the containers have no fixed names.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator

import pytest
import yaml

from qmdctl import api_keys
from tests.support.metrics_images import build_metrics_images
from tests.support.monitoring import Prometheus
from tests.support.qmdctl_cli import DOCKER_HOST, Qmdctl, docker
from tests.support.service import free_port, minilm_path, poll
from tests.support.stack_images import embed_image, need_engine
from tests.support.stack_project import make_project
from tests.support.tailnet_project import remove

pytestmark = [pytest.mark.docker, pytest.mark.metrics, pytest.mark.slow, pytest.mark.timeout(600)]
PROJECT, NAMES = "qmdmetrics", "compose.names.yaml"
SERVICES = ("embed", "exporter", "node-exporter", "prometheus", "alertmanager", "grafana")
ADDRESS = "http://192.0.2.1/secret-of-the-owner"  # of nobody (RFC 5737)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Qmdctl]:
    """Keys are demanded, and alerts have an address."""
    need_engine()
    build_metrics_images()
    embed_image()
    home = tmp_path_factory.mktemp("containers")
    models = home / "models"
    shutil.copytree(minilm_path(), models / "minilm")
    for path in (models, *models.rglob("*")):
        os.chmod(path, 0o777 if path.is_dir() else 0o644)
    values = {
        "COMPOSE_PROJECT_NAME": PROJECT,
        "COMPOSE_FILE": f"compose.yaml:compose.cpu.yaml:{NAMES}",
        "COMPOSE_PROFILES": "metrics",
        "GENERATION_URL": "",
        "DTYPE": "float32",
        **{"EMBED_MODEL": "/models/minilm", "RERANK_MODEL": "/models/minilm", "HF_CACHE_DIR": str(models), "HF_HUB_OFFLINE": "1"},
        **{"PROMETHEUS_PORT": str(free_port()), "GRAFANA_PORT": str(free_port())},
        **{"API_KEYS_FILE": "./secrets/api_keys", "ALERT_WEBHOOK_URL_FILE": "./secrets/alert_webhook_url"},
    }
    qmdctl = make_project(home / "project", home, values)
    (qmdctl.folder / NAMES).write_text("services:\n" + "".join(f"  {name}: {{container_name: !reset null}}\n" for name in SERVICES))
    api_keys.add(qmdctl.folder / "secrets/api_keys", "laptop")
    (qmdctl.folder / "secrets/alert_webhook_url").write_text(ADDRESS)
    for secret in ("api_keys", "alert_webhook_url"):
        (qmdctl.folder / "secrets" / secret).chmod(0o600)
        os.chown(qmdctl.folder / "secrets" / secret, 1000, 1000)
    try:
        done = qmdctl.run("up", "--skip-checks", "--json", seconds=500)
        assert done.status == 0, done.err
        yield qmdctl
    finally:
        remove(qmdctl)


@pytest.fixture(scope="module")
def prometheus(stack: Qmdctl) -> Iterator[Prometheus]:
    asking = Prometheus(f"http://127.0.0.1:{stack.value('PROMETHEUS_PORT')}")
    yield asking
    asking.client.close()


def name_of(service: str) -> str:
    return f"{PROJECT}-{service}-1"


def test_every_target_is_up_though_embed_demands_a_key(prometheus: Prometheus) -> None:
    wanted = dict.fromkeys(("embed", "exporter", "node-exporter", "alertmanager", "prometheus"), "up")

    def all_up() -> bool:
        return {name: health for name, (health, _) in prometheus.targets().items()} == wanted

    poll(all_up, 120, f"every target to be up: {prometheus.targets()}", every=0.5)


def test_the_disks_of_models_and_of_docker_are_seen(prometheus: Prometheus) -> None:
    found = poll(lambda: prometheus.query('node_filesystem_size_bytes{mountpoint=~"/disks/.+"}'), 60, "the disks", every=0.5)
    assert {one["metric"]["mountpoint"] for one in found} == {"/disks/models", "/disks/docker"}
    poll(lambda: prometheus.query("qmd:disk_free:ratio"), 60, "the recorded figure", every=0.5)
    memory = prometheus.value("node_memory_MemTotal_bytes")
    assert memory == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "the machine's, not the container's"


def test_qmdctl_tells_of_them(stack: Qmdctl) -> None:
    status = stack.run("status", "--json")
    assert status.status == 0, status.out
    services = {one["service"]: one for one in status.json["services"]}
    assert {name: one["phase"] for name, one in services.items()} == dict.fromkeys(SERVICES, "ready")
    assert services["grafana"]["url"] == f"http://127.0.0.1:{stack.value('GRAFANA_PORT')}"
    links = {f"{link['service']} {link['link']}": link for link in stack.run("health", "--json").json["links"]}
    assert links["prometheus targets"]["state"] == "ok", links["prometheus targets"]
    assert links["prometheus targets"]["detail"] == "5 of 5 targets are up"


def test_a_second_up_finds_them_running(stack: Qmdctl) -> None:
    done = stack.run("up", "--skip-checks", "--json")
    assert (done.status, done.json["status"]) == (0, "running"), done.err


def test_passwords_and_addresses_stand_in_no_log_and_no_inspect(stack: Qmdctl) -> None:
    password = docker("exec", name_of("grafana"), "cat", "/var/lib/grafana/admin-password")
    assert re.fullmatch(r"[A-Za-z0-9_-]{32}", password)
    for service in SERVICES:
        seen = docker("logs", name_of(service)) + docker("inspect", name_of(service))
        assert password not in seen
        assert ADDRESS not in seen
    assert docker("exec", name_of("alertmanager"), "cat", "/run/secrets/alert_webhook_url") == ADDRESS, "as who it runs it can read it"
    shown = docker("exec", name_of("alertmanager"), "amtool", "config", "show", "--alertmanager.url=http://127.0.0.1:9093")
    assert "url_file: /run/secrets/alert_webhook_url" in shown
    assert ADDRESS not in shown


def test_only_loopback_reaches_them(stack: Qmdctl) -> None:
    published: dict[str, set[str]] = {}
    for service in SERVICES:
        ports = json.loads(docker("inspect", name_of(service)))[0]["NetworkSettings"]["Ports"]
        published |= {service: {one["HostIp"] for bindings in ports.values() for one in bindings or ()}}
    assert {name for name, hosts in published.items() if hosts} == {"embed", "prometheus", "grafana"}
    assert set().union(*published.values()) == {"127.0.0.1"}


def test_plain_compose_finds_nothing_to_change(stack: Qmdctl) -> None:
    """What qmdctl started is what `docker compose up -d` starts."""
    before = {service: docker("inspect", name_of(service), "--format", "{{.Id}}") for service in SERVICES}
    command = ["docker", "--host", DOCKER_HOST, "compose", "up", "--detach", "--no-build"]
    subprocess.run(command, cwd=stack.folder, capture_output=True, check=True, timeout=200)
    assert {service: docker("inspect", name_of(service), "--format", "{{.Id}}") for service in SERVICES} == before


def test_a_changed_rule_is_in_force_after_up(stack: Qmdctl, prometheus: Prometheus) -> None:
    rules = stack.folder / "monitoring/rules.yml"
    data = yaml.safe_load(rules.read_text())
    data["groups"][1]["rules"] = [{"alert": "OwnersOwn", "expr": "vector(1)"}]
    rules.write_text(yaml.safe_dump(data))
    done = stack.run("up", "--skip-checks", "--json")
    assert done.status == 0, done.err
    prometheus.wait_alert("OwnersOwn")


def test_without_the_profile_they_go(stack: Qmdctl) -> None:
    stack.set(COMPOSE_PROFILES="")
    done = stack.run("up", "--skip-checks", "--json")
    assert done.status == 0, done.err
    assert docker("ps", "--all", "--format", "{{.Names}}", "--filter", f"label=com.docker.compose.project={PROJECT}") == name_of("embed")
    assert "prometheus" in docker("volume", "ls", "--format", "{{.Name}}"), "what was recorded stays"
