"""The images of the profile `metrics` on the tests' own engine, made of Debian's programs, under the names that compose.yaml has."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from qmdctl.compose_files import defaults
from qmdctl.monitors import IMAGE_KEYS
from tests.support.monitoring import need_metrics
from tests.support.qmdctl_cli import DOCKER_HOST
from tests.support.service import ROOT
from tests.support.stack_images import BASE_IMAGE, CA_BUNDLE

BASE = "qmd-test/metrics-base"
FOLDER = ROOT / "tests/metrics/images"
TEMPLATES = "/usr/share/prometheus/alertmanager"  # inside the program in the project's own build
PROGRAMS = ("prometheus", "promtool", "prometheus-alertmanager", "amtool", "prometheus-node-exporter")


def build_metrics_images() -> None:
    """Skips where the programs are missing."""
    need_metrics()
    names = defaults([ROOT / "compose.yaml"])
    # The base of the tailnet's images: Debian with busybox, whose wget the healthchecks call.
    build(BASE, "base", ROOT / "tests/tailnet/images/Dockerfile", ROOT, "--build-arg", f"BASE_IMAGE={BASE_IMAGE}")
    with TemporaryDirectory() as programs:
        for program in PROGRAMS:
            shutil.copy(str(shutil.which(program)), programs)
        shutil.copytree(TEMPLATES, Path(programs) / "templates")
        for service, key in IMAGE_KEYS.items():
            options = ("--build-context", f"programs={programs}", "--build-arg", f"BASE_IMAGE={BASE}")
            build(names[key], service, FOLDER / "Dockerfile", FOLDER, *options)


def build(name: str, target: str, dockerfile: Path, context: Path, *options: str) -> None:
    command = ["docker", "--host", DOCKER_HOST, "build", "--quiet", "--file", str(dockerfile), "--target", target, "--tag", name, *options]
    command += ["--secret", f"id=ca,src={CA_BUNDLE}"] if CA_BUNDLE.exists() else []
    done = subprocess.run([*command, str(context)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"{name} could not be built:\n{done.stderr[-3000:]}", pytrace=False)
