"""Copies of the project whose sidecars join the tests' tailnet: with the true services, or with two FAKES that show what they are sent."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import yaml

from demo import smollm2
from tests.support.qmdctl_cli import Qmdctl, docker
from tests.support.service import ROOT, minilm_path
from tests.support.stack_images import embed_image, vllm_image
from tests.support.stack_project import make_project
from tests.support.tailnet import KEY, Tailnet

OVERRIDE = "compose.tailnet-test.yaml"
FAKES = "compose.fake-services.yaml"
ECHO = ROOT / "tests/tailnet/echo.py"
HOSTS = ("qmd-embed", "qmd-vllm")
FAKE_HOSTS = ("fake-embed", "fake-vllm")
MAIN = "compose.yaml:compose.cpu.yaml"


def sidecar_override(tailnet: Tailnet) -> dict[str, object]:
    """What a sidecar needs to know of the tests' tailnet, and the network on which it is. Nothing else has a way out either."""
    sidecar = {
        "environment": {"SSL_CERT_FILE": "/trust/roots.pem", "TS_DEBUG_ACME_DIRECTORY_URL": "https://acme:14000/dir"},
        "volumes": [f"{tailnet.trust}:/trust:ro"],
    }
    return {
        "services": {"ts-embed": sidecar, "ts-vllm": sidecar},
        "networks": {
            "tailnet": {"name": "qmdnet-box", "external": True},
            "egress": {"driver_opts": {"com.docker.network.bridge.enable_ip_masquerade": "false"}},
        },
    }


FAKE_OVERRIDE = """
services:
  embed:
    container_name: !reset null
    build: !reset null
    entrypoint: [python, -m, uvicorn, --app-dir, /fake, --host, 0.0.0.0, --timeout-keep-alive, "5", --port, "8001", "echo:app"]
    command: []
    volumes: ["./echo.py:/fake/echo.py:ro"]
    healthcheck: {test: [CMD, python, /fake/echo.py], start_interval: 500ms, interval: 1s}
  vllm:
    container_name: !reset null
    image: ${EMBED_IMAGE}
    entrypoint: [python, -m, uvicorn, --app-dir, /fake, --host, 0.0.0.0, --timeout-keep-alive, "120", --port, "8000", "echo:app"]
    command: []
    volumes: ["./echo.py:/fake/echo.py:ro"]
    healthcheck: {test: [CMD, python, /fake/echo.py], start_interval: 500ms, interval: 1s}
  ts-embed: {container_name: !reset null}
  ts-vllm: {container_name: !reset null}
"""


def tailnet_values(*more_files: str) -> dict[str, str]:
    return {
        "COMPOSE_FILE": ":".join([MAIN, *more_files, OVERRIDE]),
        "COMPOSE_PROFILES": "generation,tailnet",
        "TS_AUTHKEY_FILE": "./secrets/ts_authkey",
        "TS_TAGS": "tag:qmd-server",
        "TS_LOGIN_SERVER": "https://control",
    }


def make_tailnet_project(tailnet: Tailnet, folder: Path, home: Path, values: Mapping[str, str]) -> Qmdctl:
    """`make_project` and what belongs to the tailnet."""
    qmdctl = make_project(folder, home, values)
    if not (folder / "tailscale").exists():
        shutil.copytree(ROOT / "tailscale", folder / "tailscale")
    (folder / OVERRIDE).write_text(yaml.safe_dump(sidecar_override(tailnet)))
    give_key(qmdctl, KEY)
    return qmdctl


def make_fake_project(tailnet: Tailnet, folder: Path, home: Path, **values: str) -> Qmdctl:
    """The true compose.yaml and sidecars around two FAKE services (echo.py), under names of their own beside the true project's."""
    embed_image()
    own = {
        "COMPOSE_PROJECT_NAME": "qmdtailfake",
        "EMBED_HOSTNAME": FAKE_HOSTS[0],
        "VLLM_HOSTNAME": FAKE_HOSTS[1],
        "EMBED_UDP_PORT": "41661",
        "VLLM_UDP_PORT": "41662",
    }
    qmdctl = make_tailnet_project(tailnet, folder, home, {**own, **tailnet_values(FAKES), **values})
    shutil.copy(ECHO, folder)
    (folder / FAKES).write_text(FAKE_OVERRIDE)
    return qmdctl


def make_true_project(tailnet: Tailnet, folder: Path, home: Path, **values: str) -> Qmdctl:
    """The embed service on MiniLM and vLLM on SmolLM2, from folders, without a model hub."""
    models = home / "models"
    for name, source in (("minilm", Path(minilm_path())), ("smollm2", smollm2.prepare())):
        shutil.copytree(source, models / name)
    for path in (models, *models.rglob("*")):
        os.chmod(path, 0o777 if path.is_dir() else 0o644)
    embed_image()
    true = {
        "COMPOSE_PROJECT_NAME": "qmdtail",
        "DTYPE": "float32",
        "EMBED_MODEL": "/models/minilm",
        "RERANK_MODEL": "/models/minilm",
        "VLLM_MODEL": "/models/smollm2",
        "VLLM_IMAGE": vllm_image("0.12"),
        "VLLM_MAX_MODEL_LEN": "2048",
        "HF_CACHE_DIR": str(models),
        "HF_HUB_OFFLINE": "1",
    }
    return make_tailnet_project(tailnet, folder, home, {**true, **tailnet_values(), **values})


def give_key(qmdctl: Qmdctl, key: str) -> None:
    """The content of the key file: an auth key, an OAuth client secret, or nothing."""
    path = qmdctl.folder / "secrets/ts_authkey"
    path.write_text(f"{key}\n" if key else "")
    path.chmod(0o600)


def remove(qmdctl: Qmdctl) -> None:
    """Nothing of the project is left on the engine."""
    docker("compose", "--project-name", qmdctl.value("COMPOSE_PROJECT_NAME"), "--profile", "*", "down", "--volumes", "--timeout", "1")
