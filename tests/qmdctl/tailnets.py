"""Sidecars made by hand, of the shape that Tailscale 1.102.3 gave on the tests' tailnet; and projects with the true serve configs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from qmdctl.engine import Container
from qmdctl.settings import Settings
from qmdctl.tailnet.certificate import Certificate
from qmdctl.tailnet.serve_config import expected
from qmdctl.tailnet.sidecar import Sidecar
from tests.qmdctl.containers import container
from tests.qmdctl.projects import settings_of
from tests.support.service import ROOT

SUFFIX = "tail1234.ts.net"
SERVED = {"ts-embed": "embed", "ts-vllm": "vllm"}


def tailnet_settings(folder: Path, **values: str) -> Settings:
    """The true compose.yaml and tailscale/ with both profiles on and these lines in .env."""
    if not (folder / "tailscale").exists():
        shutil.copytree(ROOT / "tailscale", folder / "tailscale")
    return settings_of(folder, {"COMPOSE_PROFILES": "generation,tailnet", "GENERATION_URL": "http://vllm:8000", **values})


def serve_of(name: str, host: str) -> dict[str, Any]:
    """tailscale/NAME/serve.json as it is in force on that host."""
    return expected(json.loads((ROOT / f"tailscale/{name}/serve.json").read_text()), f"{host}.{SUFFIX}")


def in_days(days: float) -> datetime:
    return datetime.now(UTC) + timedelta(days=days)


def sidecar(service: str = "ts-embed", **fields: Any) -> Sidecar:
    """One that is well; `fields` make it otherwise."""
    host = f"qmd-{SERVED[service]}"
    well = Sidecar(
        service,
        state="Running",
        wanted=host,
        name=f"{host}.{SUFFIX}",
        suffix=SUFFIX,
        addresses=("100.64.0.2", "fd7a:115c:a1e0::2"),
        tags=("tag:qmd-server",),
        online=True,
        capabilities=frozenset({"https"}),
        cert_domains=(f"{host}.{SUFFIX}",),
        serve=serve_of(SERVED[service], host),
        serve_path=f"/serve/{SERVED[service]}/serve.json",
        certificate=Certificate((f"{host}.{SUFFIX}",), in_days(60)),
    )
    return replace(well, **fields)


def sidecar_container(service: str = "ts-embed", environment: Mapping[str, str] | None = None, **fields: Any) -> Container:
    port = 41651 if service == "ts-embed" else 41652
    own = {
        "TS_HOSTNAME": f"qmd-{SERVED[service]}",
        "TS_STATE_DIR": "/var/lib/tailscale",
        "TS_AUTH_ONCE": "true",
        "TS_USERSPACE": "true",
        "TS_TAILSCALED_EXTRA_ARGS": f"--port={port}",
        "TS_SERVE_CONFIG": f"/serve/{SERVED[service]}/serve.json",
    }
    values: dict[str, Any] = {"health": "healthy", "image": "tailscale/tailscale:v1.102.3", "ports": {f"{port}/udp": port}, **fields}
    return container(service, environment={**own, **(environment or {})}, **values)


class FakeExec:
    """FAKE engine: what a command inside a container prints, and its log."""

    def __init__(self, said: str = "ok\n--8<-- status 0\n", log: tuple[str, ...] = ()) -> None:
        self.said, self.log, self.asked = said, log, [()]

    def execute(self, container: Container, command: list[str]) -> str:
        self.asked.append(tuple(command))  # type: ignore[arg-type]
        return self.said

    def logs(self, container: Container, **options: Any) -> list[str]:
        return list(self.log)
