"""A copy of the project that `qmdctl up` can start on the tests' engine, with models from a FAKE hub."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.support.hub import FakeHub
from tests.support.qmdctl_cli import Qmdctl, docker
from tests.support.service import ROOT, free_port
from tests.support.stack_images import BASE_IMAGE, CA_BUNDLE, EMBED_IMAGE

FILES = ("compose.yaml", "compose.cpu.yaml", ".env.example", ".dockerignore", "Dockerfile.embed")
FOLDERS = ("embed_service", "monitoring", "requirements", "scripts", "secrets", "tailscale", "vllm")
CPU = {"COMPOSE_FILE": "compose.yaml:compose.cpu.yaml"}


@dataclass
class Stack:
    """A project and the FAKE hub that its models come from."""

    qmdctl: Qmdctl
    hub: FakeHub

    def url(self, service: str) -> str:
        """Where the service answers on this machine."""
        return f"http://127.0.0.1:{self.qmdctl.value(f'{service.upper()}_PORT')}"

    def post(self, service: str, path: str, **body: Any) -> Any:
        answer = httpx.post(f"{self.url(service)}{path}", json=body, timeout=60, trust_env=False)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def up(self) -> Any:
        done = self.qmdctl.run("up", "--skip-checks", "--json", seconds=800)
        assert done.status == 0, done.err
        return done.json

    def close(self, name: str) -> None:
        """Nothing of the Compose project `name` is left."""
        docker("compose", "--project-name", name, "--profile", "*", "down", "--volumes", "--timeout", "1")


def make_project(folder: Path, home: Path, values: Mapping[str, str]) -> Qmdctl:
    """The files that users have, and .env.example with `values` as .env."""
    folder.mkdir(parents=True)
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    shutil.copy(ROOT / ".env.example", folder / ".env")
    qmdctl = Qmdctl(folder, home)
    ports = {"EMBED_PORT": str(free_port()), "VLLM_PORT": str(free_port())}
    ca = {"CA_FILE": str(CA_BUNDLE)} if CA_BUNDLE.exists() else {}
    images = {"EMBED_BASE_IMAGE": BASE_IMAGE, "EMBED_IMAGE": EMBED_IMAGE}
    # A test machine's own limit may not be raised (an engine in a container), so the containers get what the engine has.
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    memlock = {} if limit == resource.RLIM_INFINITY else {"MEMLOCK_BYTES": str(limit)}
    qmdctl.set(**{**CPU, **images, **ports, **ca, **memlock, **values})
    return qmdctl


def bridge_address() -> str:
    """The address of this machine that every container reaches."""
    return docker("network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Gateway}}")
