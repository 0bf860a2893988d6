"""`qmdctl doctor` against the tests' own engine. FAKE: the GPU, where one is asked for (a script in nvidia-smi's place)."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.qmdctl.machines import card
from tests.support.hub import FakeHub
from tests.support.qmdctl_cli import docker
from tests.support.service import minilm_path
from tests.support.stack_images import embed_image, need_engine
from tests.support.stack_project import Stack, make_project

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]
MODEL = "sentence-transformers/all-MiniLM-L6-v2"


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    need_engine()
    embed_image()
    with FakeHub() as hub:
        hub.add(MODEL, Path(minilm_path()))
        values = {
            "COMPOSE_PROJECT_NAME": "qmddoctor",
            "COMPOSE_PROFILES": "",
            "EMBED_MODEL": MODEL,
            "RERANK_MODEL": MODEL,
            "HF_ENDPOINT": hub.url,
        }
        yield Stack(make_project(tmp_path / "project", tmp_path, values), hub)


def findings(stack: Stack, *arguments: str, status: int = 0, **environment: str) -> dict[str, list[dict[str, Any]]]:
    done = stack.qmdctl.run("doctor", "--json", *arguments, env=environment)
    assert done.status == status, done.out + done.err
    result: dict[str, list[dict[str, Any]]] = {}
    for finding in done.json["findings"]:
        result.setdefault(finding["check"], []).append(finding)
    return result


def test_a_machine_that_can(stack: Stack) -> None:
    found = findings(stack)
    for name in ("engine", "compose_version", "env_lint", "secrets", "ports", "architecture", "models"):
        assert {finding["level"] for finding in found[name]} == {"ok"}, found[name]
    assert [finding["level"] for finding in found["disk"]] == ["ok", "warning"], "the size of MiniLM is not in the table"
    assert found["gpu_host"][0]["level"] == "skipped"
    text = stack.qmdctl.run("doctor")
    assert text.status == 0
    assert "✓ engine" in text.out


def test_a_busy_port_names_its_holder(stack: Stack) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        stack.qmdctl.set(EMBED_PORT=str(port))
        (finding,) = findings(stack, status=3)["ports"]
        assert finding["what"].startswith(f"port {port} is held by pid {os.getpid()} (")
        assert "EMBED_PORT" in finding["fix"]
        done = stack.qmdctl.run("up")
        assert done.status == 3, "up runs the same checks before it starts anything"
        assert f"port {port} is held by pid" in done.err
        assert docker("ps", "--all", "--quiet", "--filter", "label=com.docker.compose.project=qmddoctor") == ""


def test_a_wrong_model_is_refused_before_the_start(stack: Stack) -> None:
    stack.qmdctl.set(EMBED_MODEL="no/such")
    done = stack.qmdctl.run("up")
    assert done.status == 2, done.err
    assert "EMBED_MODEL=no/such is not a model of" in done.err


def test_a_plan_that_does_not_fit_is_refused_with_exit_3(stack: Stack) -> None:
    stack.qmdctl.set(EMBED_MODEL="Qwen/Qwen3-Embedding-8B", RERANK_MODEL="Qwen/Qwen3-8B", DTYPE="float32", HF_HUB_OFFLINE="1")
    (finding,) = findings(stack)["memory"]
    assert finding["level"] == "warning", "a model whose size is not known is said, not refused"
    stack.qmdctl.set(EMBED_MODEL="Qwen/Qwen3-8B")
    (finding,) = findings(stack, status=3)["memory"]
    assert finding["what"].startswith("Planned: embed 3")
    assert "Not starting" in finding["what"]


def test_a_container_that_does_not_see_the_gpu_of_the_host(stack: Stack, tmp_path: Path) -> None:
    """The host's GPU is FAKE, and truly no container sees it."""
    script = tmp_path / "bin/nvidia-smi"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\necho '" + card("NVIDIA GeForce RTX 4090", 24564) + "'\n")
    script.chmod(0o755)
    found = findings(stack, "--gpu", status=3, PATH=f"{script.parent}:{os.environ['PATH']}")
    assert [finding["level"] for finding in found["gpu_host"]] == ["ok"]
    assert {finding["level"] for finding in found["driver"]} == {"ok"}
    (finding,) = found["gpu_container"]
    assert finding["level"] == "failure"
    assert finding["fix"]
    without = findings(stack, "--gpu", status=3)
    assert without["gpu_host"][0]["level"] == "failure"
    assert "qmdctl up --cpu" in without["gpu_host"][0]["fix"]
