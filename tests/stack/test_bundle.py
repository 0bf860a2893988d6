"""`qmdctl bundle` on a real engine: keys in the containers' environment, command lines and logs, and none in the archive."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.qmdctl.leaks import contents, leaks
from tests.support.qmdctl_cli import DOCKER_HOST, Qmdctl, docker, said
from tests.support.require import require
from tests.support.service import free_port, poll

pytestmark = pytest.mark.docker
FAKE = Path(__file__).parent / "fake"
KEYS = {
    "in the environment of a container": "container-env-71<&>",
    "in its log, as its environment has it": "container-env-72",
    "in its log alone": "hf_OnlyInTheLog73",
    "in a proxy in its log": "proxy-p/w@74",
    "in its command line": "command-line-75",
    "under another name of its variable": "other-name-76",
    "in .env no longer": "no-longer-77",
}
OVERRIDE = f"""
services:
  embed:
    environment:
      VLLM_API_KEY: "{KEYS["in the environment of a container"]}"
      A_SECRET: ${{GIVEN:-}}
      OLD_TOKEN: ${{OLD:-}}
  vllm:
    environment: ["ANOTHER_TOKEN={KEYS["in its log, as its environment has it"]}"]
    command: [python3, /fake/service.py, "8000", "--api-key", "{KEYS["in its command line"]}"]
"""


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Qmdctl]:
    require("docker", Path(DOCKER_HOST.removeprefix("unix://")).exists(), f"no engine at {DOCKER_HOST}")
    folder = tmp_path / "project"
    shutil.copytree(FAKE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "compose.override.yaml").write_text(OVERRIDE)
    name = f"qmdbundle{uuid.uuid4().hex[:8]}"
    log = "; ".join(f"log {place} {key}" for place, key in KEYS.items() if place != "in a proxy in its log")
    log += f"; log via http://anna:{KEYS['in a proxy in its log']}@proxy.example:3128 and on; log a plain line of embed"
    lines = {"COMPOSE_PROJECT_NAME": name, "COMPOSE_PROFILES": "generation", "EMBED_PORT": free_port(), "VLLM_PORT": free_port()}
    lines |= {"GIVEN": KEYS["under another name of its variable"], "OLD": KEYS["in .env no longer"], "FAKE_EMBED": f"'{log}'"}
    (folder / ".env").write_text("".join(f"{key}={value}\n" for key, value in lines.items()))
    yield Qmdctl(folder, tmp_path)
    docker("compose", "--project-name", name, "--profile", "*", "down", "--volumes", "--timeout", "1")


def test_containers_and_their_logs(stack: Qmdctl, tmp_path: Path) -> None:
    assert stack.run("up", "--skip-checks", "--no-wait").status == 0
    name = stack.value("COMPOSE_PROJECT_NAME")
    poll(lambda: "a plain line of embed" in said(f"{name}-embed-1"), 30, "the log")
    # What a container was started with counts, also where .env has forgotten it.
    stack.set(OLD="", FAKE_EMBED="")
    done = stack.run("bundle", "--lines", "500", "--json")
    assert done.status == 0, done.err
    files = contents(Path(done.json["archive"]))
    text = "\n".join([*files, *files.values(), done.out, done.err])
    assert [place for place, key in KEYS.items() if leaks(text, key)] == []

    log = files["logs/embed.txt"]
    assert "a plain line of embed" in log
    assert "in its log alone [redacted]" in log
    assert "@proxy.example:3128 and on" in log
    inspect = json.loads(files["engine/inspect.json"])
    assert {one["Name"] for one in inspect} == {f"/{name}-embed-1", f"/{name}-vllm-1"}
    environment = [entry for one in inspect for entry in one["Config"]["Env"]]
    assert "A_SECRET=[redacted]" in environment
    assert "EMBED_MODEL=fake/embedding" in environment
    assert {one["service"] for one in json.loads(files["qmdctl/status.json"])["services"]} == {"embed", "vllm"}
    assert json.loads(files["qmdctl/health.json"])["links"]
    assert json.loads(files["engine/images.json"])[0]["Id"].startswith("sha256:")
    assert "services:" in files["project/compose-config.yaml"]
    assert f"{name}_default" in files["engine/networks.txt"]
    assert "Server" in files["engine/docker-version.txt"]
    assert not {one["name"] for one in done.json["failed"] if one["name"].startswith(("engine/", "logs/", "qmdctl/"))} - {
        "engine/stats.txt"
    }
