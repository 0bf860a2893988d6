"""A copy of the project that `qmdctl up` can start on the tests' engine, with models from a FAKE hub."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from tests.support.qmdctl_cli import Qmdctl, docker
from tests.support.service import ROOT, free_port

FILES = ("compose.yaml", "compose.cpu.yaml", ".env.example", ".dockerignore", "Dockerfile.embed")
FOLDERS = ("embed_service", "requirements", "scripts", "secrets", "vllm")
CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
# An engine inside a container may not raise this limit; the stack is to be tested there as well.
OVERRIDE = "services:\n  embed: {ulimits: !override {stack: 67108864}}\n  vllm: {ulimits: !override {stack: 67108864}}\n"


def make_project(folder: Path, home: Path, values: Mapping[str, str]) -> Qmdctl:
    """The files that users have, and .env.example with `values` as .env."""
    folder.mkdir(parents=True)
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    (folder / "compose.test.yaml").write_text(OVERRIDE)
    shutil.copy(ROOT / ".env.example", folder / ".env")
    qmdctl = Qmdctl(folder, home)
    ports = {"EMBED_PORT": str(free_port()), "VLLM_PORT": str(free_port())}
    ca = {"CA_FILE": str(CA_BUNDLE)} if CA_BUNDLE.exists() else {}
    cpu = {"COMPOSE_FILE": "compose.yaml:compose.cpu.yaml:compose.test.yaml", "EMBED_BASE_IMAGE": "qmd-test/base:bookworm"}
    qmdctl.set(**cpu, **ports, **ca, **values)
    return qmdctl


def bridge_address() -> str:
    """The address of this machine that every container reaches."""
    return docker("network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Gateway}}")


def has_image(name: str) -> bool:
    return bool(docker("images", "--quiet", name))
