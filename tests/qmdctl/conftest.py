"""A small project of the stack's shape, and qmdctl as its user runs it: a process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

COMPOSE = """
services:
  embed:
    image: ${EMBED_IMAGE:-qmd-embed:0.1.0}
    ports: ["127.0.0.1:${EMBED_PORT:-8001}:8001"]
    environment:
      EMBED_MODEL: ${EMBED_MODEL:-Qwen/Qwen3-Embedding-4B}
      MAX_BATCH_SIZE: ${MAX_BATCH_SIZE:-}
      GENERATION_URL: ${GENERATION_URL:-}
  vllm:
    profiles: [generation]
    image: vllm:1
    environment: {QMD_MODEL: "${VLLM_MODEL:-Qwen/Qwen3-4B}", PRICE: "5 $$"}
"""
CPU = """
services:
  embed:
    deploy: !reset null
    environment: {EMBED_MODEL: "${EMBED_MODEL:-Qwen/Qwen3-Embedding-0.6B}"}
"""
EXAMPLE = """# The compose files.
COMPOSE_FILE=compose.yaml
# What runs.
COMPOSE_PROFILES=generation
# Embedding model:
# a Hugging Face id.
# EMBED_MODEL=Qwen/Qwen3-Embedding-4B
# Port of the embed service.
EMBED_PORT=8001
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project without .env."""
    project = tmp_path / "project"
    project.mkdir()
    (project / "compose.yaml").write_text(COMPOSE)
    (project / "compose.cpu.yaml").write_text(CPU)
    (project / ".env.example").write_text(EXAMPLE)
    (project / "Dockerfile.embed").write_text("FROM scratch\n")
    return project


@pytest.fixture
def qmdctl(tmp_path: Path) -> Run:
    """`qmdctl(*arguments, cwd=…, **environment)`: run to its end, state in the test's folder, no engine unless DOCKER_HOST is given."""

    def run(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("COMPOSE_", "DOCKER_", "QMD_HOME", "EMBED_"))
        }
        return subprocess.run(
            [sys.executable, "-m", "qmdctl", *arguments],
            cwd=cwd or tmp_path,
            env={**inherited, "XDG_STATE_HOME": str(tmp_path / "state"), "DOCKER_HOST": f"unix://{tmp_path}/no-engine.sock", **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run
