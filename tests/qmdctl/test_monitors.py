"""What qmdctl makes of the profile `metrics`. FAKE: the engine that asks Prometheus in its container."""

from __future__ import annotations

import json
import os
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from qmdctl import monitors
from qmdctl.errors import QmdError
from qmdctl.startup.freshness import outdated
from qmdctl.startup.overview import ServiceStatus, addresses, as_table
from qmdctl.startup.phases import Phase, phase_of
from tests.qmdctl.containers import container
from tests.qmdctl.contexts import NoEngine, found, levels, machine
from tests.qmdctl.projects import settings_of

METRICS = {"COMPOSE_PROFILES": "metrics"}
SERVICES = ("exporter", "node-exporter", "prometheus", "alertmanager", "grafana")


class Asked:
    """FAKE engine: what the command in the container prints."""

    def __init__(self, *targets: tuple[str, str, str], text: str | None = None) -> None:
        found = [{"labels": {"instance": name}, "health": health, "lastError": error} for name, health, error in targets]
        self.text = json.dumps({"status": "success", "data": {"activeTargets": found}}) if text is None else text

    def execute(self, container: Any, command: list[str]) -> str:
        assert command[0] == "wget"
        return self.text


def targets(engine: Any) -> str:
    return monitors.targets(engine, container("prometheus"))


def test_the_profile_starts_them_and_another_does_not(tmp_path: Path) -> None:
    assert set(settings_of(tmp_path, METRICS).services) == {"embed", *SERVICES}
    assert not set(settings_of(tmp_path, {"COMPOSE_PROFILES": "generation,tailnet"}).services) & set(SERVICES)


def test_they_are_ready_by_their_healthchecks() -> None:
    """Which print nothing of ours."""
    for name in SERVICES:
        assert phase_of(container(name, health="starting")) == Phase("starting")
        assert phase_of(container(name, health="healthy", probe_text="Connecting to 127.0.0.1")).ready
        assert phase_of(container(name, health="unhealthy", probe_text="wget: server returned error")).name == "unhealthy"
        assert phase_of(container(name, state="exited", exit_code=1)).name == "exited"


def test_where_grafana_is_is_said() -> None:
    one = ServiceStatus("grafana", Phase("ready"), container("grafana", health="healthy", ports={"3000/tcp": 3005}))
    assert "http://127.0.0.1:3005" in as_table([one])
    assert "http://127.0.0.1:3005" in addresses([one])
    assert "docs/metrics.md" in addresses([one])


def test_how_many_targets_are_reached() -> None:
    assert targets(Asked(("embed", "up", ""), ("vllm", "up", ""), ("ts-embed", "unknown", ""))) == "2 of 3 targets are up"
    with pytest.raises(QmdError, match="does not reach vllm: connection refused") as caught:
        targets(Asked(("embed", "up", ""), ("vllm", "down", "connection refused")))
    assert caught.value.fix == "qmdctl status; qmdctl logs vllm"
    with pytest.raises(QmdError, match=r"vllm \(2 of 3: vllm, exporter\)"):
        targets(Asked(("embed", "up", ""), ("vllm", "down", "refused"), ("exporter", "down", "refused")))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"data": null}', '{"data": {"activeTargets": [{}]}}'])
def test_an_answer_that_is_none(text: str) -> None:
    with pytest.raises(QmdError, match="does not say what it scrapes"):
        targets(Asked(text=text))


def test_their_ports_and_settings_are_checked_where_they_run(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        values = {"GRAFANA_PORT": str(taken.getsockname()[1]), "PROMETHEUS_PORT": "many", "ALERT_WEBHOOK_KIND": "pigeon"}
        context = NoEngine(tmp_path, machine(), {**METRICS, **values})
        context.__dict__["containers"] = {}
        assert [one.what for one in found(context, "ports") if one.level == "failure" and "GRAFANA_PORT" in one.fix]
        wrong = {one.what for one in found(context, "env_lint") if one.level == "failure"}
        assert "ALERT_WEBHOOK_KIND=pigeon cannot be used" in wrong
        assert any("PROMETHEUS_PORT='many'" in what for what in wrong)
        without = NoEngine(tmp_path, machine(), {"COMPOSE_PROFILES": "", **values, "ALERT_WEBHOOK_KIND": "slack"})
        without.__dict__["containers"] = {}
        assert "failure" not in {*levels(without, "ports"), *levels(without, "env_lint")}


def test_their_secret_files_are_checked(tmp_path: Path) -> None:
    for key in monitors.SECRET_KEYS:
        (failure,) = (one for one in found(NoEngine(tmp_path, machine(), {key: "./no-such-file"}), "secrets") if one.level == "failure")
        assert key in failure.what


def test_a_rule_that_was_changed_is_read_by_the_next_up(tmp_path: Path) -> None:
    rules = tmp_path / "monitoring/rules.yml"
    rules.parent.mkdir()
    rules.touch()
    before = datetime.now(UTC) - timedelta(hours=1)
    os.utime(rules, (before.timestamp(), before.timestamp()))
    for name in monitors.READS_WHEN_IT_STARTS:
        assert not outdated(tmp_path, container(name, started_at=before + timedelta(minutes=1)))
        assert outdated(tmp_path, container(name, started_at=before - timedelta(minutes=1)))
    assert not outdated(tmp_path, container("exporter", started_at=before - timedelta(minutes=1)))
