"""The images of the profile `metrics` on the tests' own engine, made of Debian's programs, under the names that compose.yaml has."""

from __future__ import annotations

import shutil
import subprocess
from tempfile import TemporaryDirectory

import pytest

from qmdctl.compose_files import defaults
from qmdctl.monitors import IMAGE_KEYS
from tests.support.monitoring import need_metrics
from tests.support.qmdctl_cli import DOCKER_HOST
from tests.support.service import ROOT
from tests.support.tailnet_images import sidecar_image

FOLDER = ROOT / "tests/metrics/images"
PROGRAMS = ("prometheus", "promtool", "prometheus-alertmanager", "amtool", "prometheus-node-exporter")


def build_metrics_images() -> None:
    """On the sidecars' test image, which has busybox already. Skips where the programs are missing."""
    need_metrics()
    names = defaults([ROOT / "compose.yaml"])
    with TemporaryDirectory() as programs:
        for program in PROGRAMS:
            shutil.copy(str(shutil.which(program)), programs)
        for service, key in IMAGE_KEYS.items():
            command = ["docker", "--host", DOCKER_HOST, "build", "--quiet", "--file", str(FOLDER / "Dockerfile"), "--target", service]
            command += ["--tag", names[key], "--build-context", f"programs={programs}", "--build-arg", f"BASE_IMAGE={sidecar_image()}"]
            done = subprocess.run([*command, str(FOLDER)], capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.fail(f"{names[key]} could not be built:\n{done.stderr[-3000:]}", pytrace=False)
