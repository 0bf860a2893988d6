"""The compose files and .env.example agree with the settings of the service and with each other."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from embed_service.cluster.node import FIXED_PORTS, GCS_PORT
from embed_service.settings import Settings
from qmdctl import env_file
from qmdctl.compose_files import defaults, key_comments, load
from tests.qmdctl.test_env_file import need_compose
from tests.support.service import ROOT

GPU, CPU = ROOT / "compose.yaml", ROOT / "compose.cpu.yaml"
RAY, WORKER = ROOT / "compose.ray.yaml", ROOT / "compose.ray-worker.yaml"
EXAMPLE = env_file.read(ROOT / ".env.example")
OWN_ADDRESS = {"HOST", "PORT", "CONTROL_SOCKET"}  # the container's own


def environment(service: str) -> dict[str, str]:
    found = load(GPU)["services"][service]["environment"]
    return {name: str(value) for name, value in found.items()}


def test_every_setting_of_the_service_is_passed_on_and_documented() -> None:
    settings = {name.upper() for name in Settings.model_fields} - OWN_ADDRESS
    several = set(load(RAY)["services"]["embed"]["environment"]) | {"RAY_ADDRESS"}  # the head has none: it is the cluster
    assert settings <= set(environment("embed")) | several
    assert settings - {"ENGINES", "RAY_AUTH_TOKEN_PATH"} <= set(key_comments(ROOT / ".env.example"))


def test_a_default_in_compose_is_the_service_s_own() -> None:
    """But for what is the stack's own: the address of vLLM, the sidecars' names, Prometheus'."""
    for name, default in defaults([GPU]).items():
        field = Settings.model_fields.get(name.lower())
        if field is None or not default or name.endswith("_FILE") or name in ("GENERATION_URL", "TRUSTED_SIDECARS", "METRICS_CLIENTS"):
            continue
        assert default == str(field.default).lower() or default == str(field.default), name


def test_every_key_has_its_sentence_and_every_documented_key_is_taken() -> None:
    taken, documented = set(defaults([GPU, CPU, RAY, WORKER])), key_comments(ROOT / ".env.example")
    compose_own = {"COMPOSE_PROJECT_NAME", "COMPOSE_FILE", "COMPOSE_PROFILES"}
    assert taken <= set(documented) | compose_own
    assert set(documented) <= taken | compose_own
    assert [key for key, sentence in documented.items() if not sentence.endswith((".", ")"))] == []


def test_the_example_shows_the_defaults() -> None:
    shown = dict(re.findall(r"^(?:# )?([A-Z][A-Z0-9_]*)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))
    for name, default in defaults([GPU]).items():
        if default and default != "./secrets/none" and not default.startswith("${") and name != "HF_CACHE_DIR":
            assert shown[name] == default, name
    assert EXAMPLE.check().values["COMPOSE_FILE"] == "compose.yaml"


def test_images_have_full_version_tags() -> None:
    for file in (GPU, CPU, RAY, WORKER):
        for service in load(file)["services"].values():
            image = str(service.get("image", ""))
            if image:
                assert re.search(r":v?\d+\.\d+[\w.-]+\}?$", image), image


def test_a_ray_worker_runs_as_the_service_does_and_has_its_keys_from_the_same_lines() -> None:
    """Without anchors over two files: what must be equal is compared."""
    embed, worker = load(GPU)["services"]["embed"], load(WORKER)["services"]["ray-worker"]
    same = ("user", "init", "restart", "read_only", "cap_drop", "security_opt", "ulimits", "logging", "tmpfs", "shm_size", "deploy")
    assert {name: embed[name] for name in same} == {name: worker[name] for name in same}
    assert {**embed["build"], "args": {**embed["build"]["args"], "VARIANT": "ray"}} == worker["build"]
    passed = environment("embed") | {name: str(value) for name, value in load(RAY)["services"]["embed"]["environment"].items()}
    own = {name: str(value) for name, value in worker["environment"].items() if name not in ("RAY_ADDRESS", "DEVICE")}
    assert own == {name: passed[name] for name in own}


def test_ray_listens_on_the_address_that_the_owner_names_and_nowhere_else() -> None:
    ports = [*load(RAY)["services"]["embed"]["ports"], *load(WORKER)["services"]["ray-worker"]["ports"]]
    assert [port.partition("}:")[0].partition(":?")[0] for port in ports] == ["${RAY_NODE_IP"] * 2
    published = range(6379, 6400)
    assert all(port in published for port in (GCS_PORT, *FIXED_PORTS.values()))


@pytest.mark.parametrize(
    ("values", "image"),
    [
        ({}, "qmd-embed:0.1.0"),
        ({"COMPOSE_FILE": "compose.yaml:compose.ray.yaml"}, "qmd-embed-ray:0.1.0"),
        ({"COMPOSE_FILE": "compose.yaml:compose.ray.yaml", "EMBED_RAY_IMAGE": "mine:1.0"}, "mine:1.0"),
    ],
)
def test_the_one_image_that_is_built_is_all_that_the_profiles_want_of_ours(tmp_path: Path, values: dict[str, str], image: str) -> None:
    need_compose()
    for name in ("compose.yaml", "compose.ray.yaml", "Dockerfile.embed"):
        shutil.copy(ROOT / name, tmp_path)
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(tmp_path), "RAY_NODE_IP": "192.168.7.1", "RAY_TOKEN_FILE": "token"}
    done = subprocess.run(
        ["docker", "compose", "--profile", "*", "config", "--images"],
        cwd=tmp_path, env={**environment, **values}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert {name for name in done.stdout.split() if not re.match(r"(prom|grafana|tailscale|nvcr\.io)/", name)} == {image}


@pytest.mark.parametrize("values", [{}, {"COMPOSE_FILE": "compose.yaml:compose.cpu.yaml"}, {"COMPOSE_PROFILES": ""}])
def test_compose_takes_the_example_without_a_warning(tmp_path: Path, values: dict[str, str]) -> None:
    need_compose()
    for name in ("compose.yaml", "compose.cpu.yaml", ".env.example", "Dockerfile.embed"):
        shutil.copy(ROOT / name, tmp_path)
    file = env_file.read(tmp_path / ".env.example")
    for key, value in values.items():
        file.set(key, value)
    (tmp_path / ".env").write_text(file.render())
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(["docker", "compose", "config"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    services: dict[str, Any] = yaml.safe_load(done.stdout)["services"]
    assert ("vllm" in services) == (values.get("COMPOSE_PROFILES") != "")
    for service in services.values():
        assert ("deploy" in service and bool(service["deploy"].get("resources"))) == ("COMPOSE_FILE" not in values)
        assert service["read_only"] is True
        assert service.get("privileged", False) is False
