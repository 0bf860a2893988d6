"""Which services Prometheus is to scrape: those that the settings ask for, so that one which is missing is a target that is down.

Prometheus' own discovery over DNS would see a container that is gone as one that was never wanted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def targets(environment: Mapping[str, str], sidecars: Iterable[str], running: Iterable[str], own_address: str) -> list[dict[str, Any]]:
    """Prometheus' HTTP service discovery: [{"targets": [address], "labels": {…}}].

    `sidecars`: all that there may be; `running`: those that have a socket, whatever the profiles in .env say (`--profile` may have
    started them). `own_address`: where the caller reached the exporter.
    """
    profiles = {name.strip() for name in environment.get("COMPOSE_PROFILES", "").split(",")}
    found = [_target(environment.get("EMBED_TARGET") or "embed:8001", "embed", "embed")]
    if profiles & {"generation", "*"}:
        found.append(_target(environment.get("VLLM_TARGET") or "vllm:8000", "vllm", "vllm"))
    chosen = set(sidecars) if profiles & {"tailnet", "*"} else set(running)
    for name in sorted(chosen):
        found.append(_target(own_address, "sidecar", name, __metrics_path__="/sidecar", __param_name=name))
    return found


def _target(address: str, job: str, instance: str, **labels: str) -> dict[str, Any]:
    return {"targets": [address], "labels": {"job": job, "instance": instance, **labels}}
