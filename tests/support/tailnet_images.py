"""Tailscale's programs in images on the tests' own engine, as scripts/test_tailnet.sh built them."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.qmdctl_cli import DOCKER_HOST
from tests.support.require import require
from tests.support.service import ROOT
from tests.support.stack_images import BASE_IMAGE, CA_BUNDLE, need_engine

CACHE = Path(os.environ.get("QMD_TEST_TAILNET_CACHE", "/var/cache/qmd-test-tailnet"))
PROGRAMS = CACHE / "bin"
DOCKERFILE = ROOT / "tests/tailnet/images/Dockerfile"


def need_programs() -> None:
    """Skip, or fail with REQUIRE=tailnet, where Tailscale's programs were not built."""
    require("tailnet", (CACHE / "stamp").exists(), f"no programs of Tailscale's in {CACHE}: scripts/test_tailnet.sh install")


def need_tailnet() -> None:
    """The programs, and an engine to run them on."""
    need_programs()
    need_engine()


def sidecar_image() -> str:
    """The name under which compose.yaml asks for Tailscale's image."""
    found = re.search(r"\$\{TAILSCALE_IMAGE:-([^}]+)\}", (ROOT / "compose.yaml").read_text())
    assert found, "compose.yaml names no default for TAILSCALE_IMAGE"
    return found[1]


def build_images() -> None:
    """The sidecar under the name that compose.yaml has, the control server with pebble, and the laptop."""
    for target, name in (("sidecar", sidecar_image()), ("control", "qmd-test/tailnet-control"), ("laptop", "qmd-test/tailnet-laptop")):
        command = ["docker", "--host", DOCKER_HOST, "build", "--quiet", "--file", str(DOCKERFILE), "--target", target, "--tag", name]
        command += ["--build-context", f"programs={PROGRAMS}", "--build-arg", f"BASE_IMAGE={BASE_IMAGE}"]
        command += ["--secret", f"id=ca,src={CA_BUNDLE}"] if CA_BUNDLE.exists() else []
        done = subprocess.run([*command, str(ROOT)], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.fail(f"{name} could not be built:\n{done.stderr[-3000:]}", pytrace=False)
