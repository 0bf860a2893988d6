"""A small project in a git checkout, whose two FAKE services do what their image says: an image or a release can be good or bad."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.support.qmdctl_cli import Qmdctl
from tests.support.service import ROOT, free_port

FAKE = ROOT / "tests/stack/fake"
BASE = "qmd-test/base:bookworm"
SECRET = "planted_secret_4711"
COMPOSE = """
x-service: &service
  restart: unless-stopped
  init: true
  stop_grace_period: 1s
  volumes: ["./service.py:/fake/service.py:ro"]
  healthcheck: {test: [CMD, python3, /fake/service.py, probe], start_period: 1h, start_interval: 500ms, interval: 500ms, retries: 1}

services:
  embed:
    <<: *service
    image: ${EMBED_IMAGE:-PROJECT-embed:0.1.0}
    build: {context: ., dockerfile: Dockerfile.embed}
    command: [sh, -c, "FAKE_SCRIPT=$$IMAGE_SCRIPT exec python3 /fake/service.py 8001"]
    ports: ["127.0.0.1:${EMBED_PORT:-8001}:8001"]
    environment: {EMBED_MODEL: fake/embedding, RERANK_MODEL: fake/reranker, SIZE: "${BATCH_SIZE:-1}", UPSTREAM_TOKEN: "${UPSTREAM_TOKEN:-}"}

  vllm:
    <<: *service
    profiles: [generation]
    image: ${VLLM_IMAGE:-FIRST}
    command: [sh, -c, "FAKE_SCRIPT=$$IMAGE_SCRIPT exec python3 /fake/service.py 8000"]
    ports: ["127.0.0.1:${VLLM_PORT:-8000}:8000"]
    environment: {QMD_MODEL: fake/generator}
"""


def make_project(home: Path, name: str, vllm_image: str) -> Qmdctl:
    """Release v0.1.0, checked out; `name`: of the Compose project and of its embed image."""
    folder = home / "project"
    folder.mkdir()
    shutil.copy(FAKE / "service.py", folder)
    (folder / "compose.yaml").write_text(COMPOSE.replace("PROJECT", name).replace("FIRST", vllm_image))
    (folder / ".env.example").write_text("# A port.\nEMBED_PORT=8001\n")
    (folder / ".gitignore").write_text(".env\n.qmdctl/\n")
    (folder / "CHANGELOG.md").write_text("# Changelog\n")
    git(folder, "init", "--quiet", "--initial-branch", "main")
    release(folder, "v0.1.0", "")
    lines = {"COMPOSE_PROJECT_NAME": name, "COMPOSE_PROFILES": "generation", "UPSTREAM_TOKEN": SECRET, "BATCH_SIZE": "7"}
    lines |= {"EMBED_PORT": str(free_port()), "VLLM_PORT": str(free_port())}
    (folder / ".env").write_text("".join(f"{key}={value}\n" for key, value in lines.items()))
    return Qmdctl(folder, home, {"QMDCTL_NO_RECORD": ""})


def dockerfile(script: str, made: str) -> str:
    return f'FROM {BASE}\nENV IMAGE_SCRIPT="{script}"\nLABEL made={made}\n'


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def release(folder: Path, tag: str, script: str, more: str = "") -> None:
    """A commit with that tag, whose embed image does what the script says; `more`: lines of its Dockerfile."""
    (folder / "Dockerfile.embed").write_text(dockerfile(script, f"{folder.parent.name}-{tag}") + more)
    (folder / "embed_service").mkdir(exist_ok=True)
    (folder / "embed_service/__init__.py").write_text(f'__version__ = "{tag[1:]}"\n')
    with (folder / "CHANGELOG.md").open("a") as out:
        out.write(f"- What {tag} brings.\n")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", f"release {tag}")
    git(folder, "tag", tag)


def released(stack: Qmdctl, tag: str, script: str, more: str = "") -> None:
    """The same, made elsewhere: the checkout stays where it is."""
    here = git(stack.folder, "rev-parse", "HEAD")
    git(stack.folder, "checkout", "--quiet", "--detach")
    release(stack.folder, tag, script, more)
    git(stack.folder, "checkout", "--quiet", "--detach", here)
