"""Containers as Docker shows them, made by hand: what a test needs of one."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from qmdctl.engine import Container

STARTED = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def container(service: str = "embed", state: str = "running", health: str = "starting", **fields: Any) -> Container:
    values: dict[str, Any] = {
        "name": f"qmd-{service}",
        "id": service,
        "image": "image:1",
        "exit_code": 0,
        "oom_killed": False,
        "error": "",
        "restart_count": 0,
        "started_at": STARTED,
        "finished_at": None,
        "pid": 1,
        **fields,
    }
    return Container(service=service, state=state, health=health, **values)


def probing(service: str = "embed", **probe: Any) -> Container:
    """One that runs, with this line from its healthcheck."""
    return container(service, probe={"status": "loading", **probe})
