"""Prometheus, Alertmanager, node-exporter and the exporter as processes on loopback, with the files of monitoring/.

What differs from the shipped files is what `fast` and `at_ports` change: durations, and host names.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import yaml

from qmdctl.compose_files import load
from tests.support.require import require
from tests.support.service import ROOT, free_port, poll

MONITORING = ROOT / "monitoring"
PROGRAMS = ("prometheus", "promtool", "prometheus-node-exporter", "prometheus-alertmanager", "amtool")
WINDOW_SECONDS = 8  # in place of the rules' minutes: a fault is forgotten that soon


def need_metrics() -> None:
    """Skip, or fail with REQUIRE=metrics, where a program is missing."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    packages = "prometheus, prometheus-node-exporter and, from Debian 13 or newer, prometheus-alertmanager"
    require("metrics", not missing, f"not installed: {', '.join(missing)} (Debian's packages {packages})")


def fast(text: str) -> str:
    """A file of monitoring/ with its minutes as seconds: ranges of WINDOW_SECONDS, `for` and all intervals of one second."""
    text = re.sub(r"\[\d+[smhd]\]", f"[{WINDOW_SECONDS}s]", text)
    return re.sub(r"\b(for|\w+_interval|scrape_timeout|group_wait): \d+[smhd]\b", r"\1: 1s", text)


def at_ports(text: str, ports: Mapping[str, int]) -> str:
    """A file of monitoring/ with the containers' addresses ("exporter:9464") on this machine."""
    for address, port in ports.items():
        assert address in text, address
        text = text.replace(address, f"127.0.0.1:{port}")
    return text


class Processes:
    """Programs that end with the test, by their own ids."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *command: str, **environment: str) -> subprocess.Popen[bytes]:
        keep = {key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ}
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env={**keep, "PYTHONPATH": str(ROOT), **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._running[name] = process
        return process

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def answers(self, name: str, url: str, seconds: float = 30) -> None:
        """Wait until it does; what it logged where it ends instead."""

        def there() -> bool:
            assert self._running[name].poll() is None, self.log(name)[-3000:]
            try:
                return httpx.get(url, timeout=5, trust_env=False).status_code == 200
            except httpx.TransportError:
                return False

        poll(there, seconds, f"{name} at {url}")

    def end(self, name: str) -> None:
        process = self._running.pop(name)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def close(self) -> None:
        for name in list(self._running):
            self.end(name)


class Prometheus:
    """Asking a Prometheus at `url`."""

    def __init__(self, url: str) -> None:
        self.client = httpx.Client(base_url=url, timeout=20, trust_env=False)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples of an instant vector: [{"metric": {…}, "value": [time, text]}]. A scalar or a bad expression fails the test."""
        answer = self.client.get("/api/v1/query", params={"query": expression}).json()
        assert answer["status"] == "success", f"{expression}: {answer.get('error')}"
        assert answer["data"]["resultType"] == "vector", expression
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def value(self, expression: str) -> float | None:
        """Of the only sample; None while there is none."""
        found = self.query(expression)
        return float(found[0]["value"][1]) if found else None

    def targets(self) -> dict[str, tuple[str, str]]:
        """instance → (up or down or unknown, the last error)."""
        active = self.client.get("/api/v1/targets", params={"state": "active"}).json()["data"]["activeTargets"]
        return {one["labels"]["instance"]: (one["health"], one["lastError"]) for one in active}

    def alerts(self) -> dict[str, dict[str, Any]]:
        """Those that fire: name → alert."""
        found = self.client.get("/api/v1/alerts").json()["data"]["alerts"]
        return {one["labels"]["alertname"]: one for one in found if one["state"] == "firing"}

    def wait_alert(self, name: str, firing: bool = True, seconds: float = 60) -> dict[str, Any]:
        def settled() -> dict[str, Any] | bool:
            alerts = self.alerts()
            return alerts.get(name, False) if firing else name not in alerts

        found = poll(settled, seconds, f"{name} to {'fire' if firing else 'clear'}; now {list(self.alerts())}", every=0.2)
        return found if isinstance(found, dict) else {}


def board_expressions() -> Iterator[tuple[str, str]]:
    """(panel, expression) of the board."""
    for panel in json.loads((MONITORING / "grafana/boards/qmd.json").read_text())["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


def rule_groups() -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = yaml.safe_load((MONITORING / "rules.yml").read_text())["groups"]
    return groups


def start_exporter(processes: Processes, sidecars: Path, **environment: str) -> str:
    """`python -m embed_service exporter`; its address."""
    port = free_port()
    values = {"EXPORTER_PORT": str(port), "SIDECARS_DIR": str(sidecars), **environment}
    processes.start("exporter", sys.executable, "-m", "embed_service", "exporter", **values)
    processes.answers("exporter", f"http://127.0.0.1:{port}/livez")
    return f"127.0.0.1:{port}"


def start_prometheus(processes: Processes, exporter: str, **ports: int) -> Prometheus:
    """With the shipped configuration and rules, faster. `ports`: node, alertmanager (where these listen)."""
    port = free_port()
    addresses = {
        "exporter:9464": int(exporter.rpartition(":")[2]),
        "node-exporter:9100": ports["node"],
        "alertmanager:9093": ports["alertmanager"],
        "localhost:9090": port,
    }
    text = at_ports((MONITORING / "prometheus.yml").read_text(), addresses)
    (processes.folder / "prometheus.yml").write_text(fast(text))
    (processes.folder / "rules.yml").write_text(fast((MONITORING / "rules.yml").read_text()))
    data, listen = processes.folder / "prometheus", f"127.0.0.1:{port}"
    processes.start(
        "prometheus", "prometheus", "--config.file=prometheus.yml", f"--storage.tsdb.path={data}", f"--web.listen-address={listen}"
    )
    processes.answers("prometheus", f"http://{listen}/-/ready")
    return Prometheus(f"http://{listen}")


def start_alertmanager(processes: Processes, kind: str, address_file: Path) -> int:
    """With the shipped configuration for ALERT_WEBHOOK_KIND=`kind`, faster; its port."""
    port = free_port()
    text = (MONITORING / "alertmanager" / kind / "alertmanager.yml").read_text()
    assert "/run/secrets/alert_webhook_url" in text
    (processes.folder / "alertmanager.yml").write_text(fast(text).replace("/run/secrets/alert_webhook_url", str(address_file)))
    processes.start(
        "alertmanager", "prometheus-alertmanager", "--config.file=alertmanager.yml", f"--storage.path={processes.folder / 'alertmanager'}",
        f"--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address=",
    )  # fmt: skip
    processes.answers("alertmanager", f"http://127.0.0.1:{port}/-/ready")
    return port


def start_node_exporter(processes: Processes, root: Path) -> tuple[int, Path]:
    """With the flags of compose.yaml, on a small tmpfs at `root`/disks/models that no other process sees; its port and that folder.

    It asks process 1 which mounts there are, so in a namespace of its own it is process 1, as in a container.
    """
    port, disk = free_port(), root / "disks/models"
    disk.mkdir(parents=True)
    flags = [flag for flag in load(ROOT / "compose.yaml")["services"]["node-exporter"]["command"] if "listen-address" not in flag]
    script = f'mount -t tmpfs -o size=4m tmpfs "{disk}" && exec "$@"'
    process = processes.start(
        "node-exporter", "unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", script, "sh",
        "prometheus-node-exporter", *flags, f"--web.listen-address=127.0.0.1:{port}", f"--path.rootfs={root}",
    )  # fmt: skip
    processes.answers("node-exporter", f"http://127.0.0.1:{port}/")
    return port, Path(f"/proc/{process.pid}/root{disk}")
