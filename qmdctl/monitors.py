"""The services of the profile `metrics`: their keys, where they answer, and whether Prometheus reaches all that it should."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from qmdctl.errors import QmdError

if TYPE_CHECKING:
    from qmdctl.engine import Container, Engine

IMAGE_KEYS = {
    "node-exporter": "NODE_EXPORTER_IMAGE",
    "prometheus": "PROMETHEUS_IMAGE",
    "alertmanager": "ALERTMANAGER_IMAGE",
    "grafana": "GRAFANA_IMAGE",
}
PORT_KEYS = {"prometheus": "PROMETHEUS_PORT", "grafana": "GRAFANA_PORT"}
SECRET_KEYS = ("GRAFANA_PASSWORD_FILE", "ALERT_WEBHOOK_URL_FILE")
PATHS = {"prometheus": "what was measured (/targets, /alerts)", "grafana": "the board; its user is admin (docs/metrics.md)"}
READS_WHEN_IT_STARTS = ("prometheus", "alertmanager", "grafana")  # the folder monitoring/
TARGETS = ["wget", "-Y", "off", "-q", "-O", "-", "http://127.0.0.1:9090/api/v1/targets?state=active"]


def targets(engine: Engine, prometheus: Container) -> str:
    """How many targets Prometheus reaches: "8 of 8 targets are up". Raises QmdError that names those that are down.

    It is asked in its own container: nothing of this machine needs to be able to reach it.
    """
    try:
        found = json.loads(engine.execute(prometheus, TARGETS))["data"]["activeTargets"]
        down = {str(one["labels"]["instance"]): str(one["lastError"]) for one in found if one["health"] == "down"}
    except (ValueError, KeyError, TypeError):
        raise QmdError("Prometheus does not say what it scrapes", "qmdctl logs prometheus") from None
    if down:
        name, error = next(iter(down.items()))
        others = f" ({len(down)} of {len(found)}: {', '.join(down)})" if len(down) > 1 else ""
        raise QmdError(f"Prometheus does not reach {name}{others}: {error}", f"qmdctl status; qmdctl logs {name}")
    return f"{sum(one['health'] == 'up' for one in found)} of {len(found)} targets are up"
