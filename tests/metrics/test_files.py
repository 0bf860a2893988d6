"""monitoring/: what Prometheus' and Alertmanager's own tools say of it, the board's form, and a page that says what to do at each alert."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from qmdctl.compose_files import load
from tests.support.monitoring import MONITORING, board_expressions, need_metrics, rule_groups
from tests.support.service import ROOT

START = MONITORING / "grafana/start.sh"
ALERTS = [rule for group in rule_groups() for rule in group["rules"] if "alert" in rule]
KINDS = ("", "webhook", "slack", "discord")
BOARD = json.loads((MONITORING / "grafana/boards/qmd.json").read_text())


def check(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.metrics
def test_promtool_and_amtool_take_the_files() -> None:
    need_metrics()
    check("promtool", "check", "config", "monitoring/prometheus.yml")
    check("promtool", "check", "rules", "monitoring/rules.yml")
    for kind in KINDS:
        check("amtool", "check-config", f"monitoring/alertmanager/{kind}/alertmanager.yml")


@pytest.mark.metrics
def test_alerts_fire_and_clear_when_they_should() -> None:
    need_metrics()
    check("promtool", "test", "rules", "tests/metrics/rules_test.yml")


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: str(rule["alert"]))
def test_every_alert_says_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    assert anchor == rule["alert"].lower()
    headings = re.findall(r"^#+ (\w+)$", (ROOT / page).read_text(), re.MULTILINE)
    assert rule["alert"] in headings


def test_the_board_cannot_be_changed_and_nothing_lies_over_another() -> None:
    assert BOARD["editable"] is False
    panels = BOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_the_board_asks_the_provisioned_source() -> None:
    sources = yaml.safe_load((MONITORING / "grafana/provisioning/datasources/qmd.yml").read_text())["datasources"]
    known = {source["uid"] for source in sources}
    asked = {target["datasource"]["uid"] for panel in BOARD["panels"] for target in panel.get("targets", ())}
    assert asked <= known
    assert {source["url"] for source in sources} == {"http://prometheus:9090", "http://alertmanager:9093"}
    provider = yaml.safe_load((MONITORING / "grafana/provisioning/dashboards/qmd.yml").read_text())["providers"][0]
    assert provider["allowUiUpdates"] is False
    assert provider["options"]["path"] == "/monitoring/grafana/boards"


def test_names_of_vllm_are_those_that_it_printed() -> None:
    """tests/stack asks the running vLLM of both versions."""
    recorded = (ROOT / "tests/metrics/vllm/0.12.txt").read_text()
    for name in vllm_names():
        assert re.search(rf"^{name}\{{", recorded, re.MULTILINE), name


def vllm_names() -> set[str]:
    return {name for _, expression in board_expressions() for name in re.findall(r"vllm:\w+", expression)}


def test_every_service_of_the_profile_is_closed() -> None:
    services = {name: one for name, one in load(ROOT / "compose.yaml")["services"].items() if one.get("profiles") == ["metrics"]}
    assert services.keys() == {"exporter", "node-exporter", "prometheus", "alertmanager", "grafana"}
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service["user"].startswith("0"), name
        # QMD_UID is 0 on rootless Docker, and tailscaled lets root change the sidecars.
        assert name != "exporter" or service["user"].split(":")[0].isdecimal()
        assert "healthcheck" in service, name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
        assert not {"cap_add", "privileged", "pid", "network_mode"} & service.keys(), name
        assert not [volume for volume in service.get("volumes", ()) if volume.startswith("/")], name


def test_prometheus_shares_one_network_with_embed() -> None:
    """On a second one its name could mean another address than the one that connects, which METRICS_CLIENTS would not let in."""
    services = load(ROOT / "compose.yaml")["services"]
    assert set(services["prometheus"]["networks"]) & set(services["embed"]["networks"]) == {"backend"}
    for name in ("grafana", "alertmanager"):
        assert not set(services[name]["networks"]) & set(services["embed"]["networks"])


def test_nothing_that_holds_a_node_s_key_is_given_away() -> None:
    for name, service in load(ROOT / "compose.yaml")["services"].items():
        held = {str(volume).split(":")[0] for volume in service.get("volumes", ())}
        assert not held & {"ts-embed", "ts-vllm"} or name in ("ts-embed", "ts-vllm")
        for volume in service.get("volumes", ()):
            if "-run:" in str(volume) and name not in ("ts-embed", "ts-vllm"):
                assert str(volume).endswith(":ro")


GRAFANA = """#!/bin/sh
# FAKE: what the image's own entry point does with the variable (GF_…__FILE).
cat "$GF_SECURITY_ADMIN_PASSWORD__FILE"
"""


@pytest.mark.parametrize("given", [None, "", "correct horse"])
def test_the_password_is_the_given_one_or_a_made_one(tmp_path: Path, given: str | None) -> None:
    fake = tmp_path / "run.sh"
    fake.write_text(GRAFANA)
    fake.chmod(0o755)
    if given is not None:
        (tmp_path / "given").write_text(given)
    environment = {"GIVEN_PASSWORD": str(tmp_path / "given"), "MADE_PASSWORD": str(tmp_path / "made"), "GRAFANA": str(fake)}

    def start() -> list[str]:
        command = ["sh", str(START)]
        done = subprocess.run(command, env={"PATH": os.environ["PATH"], **environment}, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    said = start()
    if given:
        assert said == [given]
        assert not (tmp_path / "made").exists()
    else:
        password = said[-1]
        assert re.fullmatch(r"[A-Za-z0-9_-]{32}", password)
        assert said[0].endswith(f"cat {tmp_path / 'made'}")
        assert password not in said[0]
        assert stat.S_IMODE((tmp_path / "made").stat().st_mode) == 0o600
        assert start()[-1] == password, "the same at the next start"
