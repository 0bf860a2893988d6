"""A machine with the seed's setup and a clone of the project, on the tests' engine."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.native import Native, service
from tests.support.qmdctl_cli import DOCKER_HOST, Qmdctl, Ran, docker
from tests.support.service import ROOT, free_port
from tests.support.stack_images import BASE_IMAGE, need_engine

PROJECT = "qmdmigrate"
# The stack's names with nothing in it: what matters here is that they are free.
SMALL = f"""
services:
  embed: &sleeper
    container_name: qmd-embed
    image: {BASE_IMAGE}
    init: true
    command: [sleep, infinity]
    ports: ["127.0.0.1:${{EMBED_PORT:-8001}}:8001"]
  vllm:
    <<: *sleeper
    container_name: qmd-vllm
    profiles: [generation]
    ports: ["127.0.0.1:${{VLLM_PORT:-8000}}:8000"]
    environment: {{IMAGE: "${{VLLM_IMAGE:-nvcr.io/nvidia/vllm:25.12.post1-py3}}"}}
"""


@dataclass
class Box:
    """A machine with the seed's setup and a clone of the project."""

    qmdctl: Qmdctl
    native: Native
    embed_port: int
    vllm_port: int

    @property
    def folder(self) -> Path:
        return self.qmdctl.folder

    @property
    def env(self) -> Path:
        return self.folder / ".env"

    def migrate(self, *arguments: str, status: int = 0, **environment: str) -> Any:
        done = self.run(*arguments, **environment)
        assert done.status == status, done.out + done.err
        assert "Traceback" not in done.err
        return done.json

    def run(self, *arguments: str, **environment: str) -> Ran:
        return self.qmdctl.run("migrate", "--json", *arguments, env=environment)

    def vllm(self, *options: str) -> str:
        """The seed's container; its id."""
        published = f"127.0.0.1:{self.vllm_port}:8000"
        cache = f"{self.native.cache}:/root/.cache/huggingface"
        serve = ("vllm", "serve", "Qwen/Qwen3-1.7B", "--port", "8000", "--gpu-memory-utilization", "0.12", "--enforce-eager")
        sleeps = ("sh", "-c", "exec sleep infinity")
        return docker("run", "-d", "--init", "--name", "qmd-vllm", "-p", published, "-v", cache, *options, BASE_IMAGE, *sleeps, *serve)

    def everything(self) -> str:
        self.native.embed_unit(self.embed_port)
        config = {"Services": {"svc:qmd-embed": service("qmd-embed", self.embed_port), "svc:qmd-vllm": service("qmd-vllm", self.vllm_port)}}
        self.native.serves(config, ["svc:qmd-embed", "svc:qmd-vllm", "svc:other"])
        self.native.model("Qwen/Qwen3-Embedding-4B", 4000)
        self.native.model("Qwen/Qwen3-1.7B", 1700)
        return self.vllm("--restart", "unless-stopped")


def container(name: str) -> tuple[str, str, str] | None:
    """(id, state, restart policy)."""
    done = subprocess.run(
        ["docker", "--host", DOCKER_HOST, "inspect", "--format", "{{.Id}} {{.State.Status}} {{.HostConfig.RestartPolicy.Name}}", name],
        capture_output=True,
        text=True,
        check=False,
    )
    identifier, state, policy = done.stdout.split() if done.returncode == 0 else ("", "", "")
    return (identifier, state, policy) if identifier else None


@contextmanager
def make_box(tmp_path: Path) -> Iterator[Box]:
    """Nothing of it is left afterwards."""
    need_engine()
    assert container("qmd-vllm") is None, "another test has a container of this name: flock /run/qmd-names.lock"
    folder = tmp_path / "project"
    (folder / "secrets").mkdir(parents=True)
    for name in (".env.example", "Dockerfile.embed"):
        shutil.copy(ROOT / name, folder)
    (folder / "compose.yaml").write_text(SMALL)
    (folder / "compose.cpu.yaml").write_text("services: {}\n")
    native = Native(tmp_path / "machine")
    environment = {"PATH": native.path, "COMPOSE_PROJECT_NAME": PROJECT}
    yield Box(Qmdctl(folder, tmp_path, environment), native, free_port(), free_port())
    compose = ("compose", "--project-name", PROJECT, "--project-directory", str(folder), "--file", str(folder / "compose.yaml"))
    docker(*compose, "--profile", "*", "down", "--timeout", "1")
    for name in ("qmd-vllm", "qmd-vllm-before", "qmd-vllm-before-2"):
        subprocess.run(["docker", "--host", DOCKER_HOST, "rm", "-f", name], capture_output=True, check=False)


def converse(box: Box, answers: list[str]) -> int:
    """Run it on a pseudo-terminal, answer each question as it comes, and return the exit status."""
    reader, writer = pty.openpty()
    options = {"stdin": writer, "stdout": writer, "stderr": writer, "cwd": box.folder}
    process = subprocess.Popen(box.qmdctl.command("migrate"), env=box.qmdctl.full_environment({"TERM": "xterm"}), **options)
    os.close(writer)
    said, waiting, end = "", list(answers), time.monotonic() + 60
    while time.monotonic() < end:
        if select.select([reader], [], [], 0.1)[0]:
            try:
                part = os.read(reader, 4096)
            except OSError:
                break
            said += part.decode(errors="replace")
            if waiting and said.rstrip(" ").endswith("]:"):
                os.write(reader, f"{waiting.pop(0)}\n".encode())
                said = ""
        elif process.poll() is not None:
            break
    os.close(reader)
    return process.wait(10)
