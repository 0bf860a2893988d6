"""What `up` and the other verbs say where nothing can be started: bad input, no engine, no permission. Each names its fix."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from tests.support.qmdctl_cli import Qmdctl, Ran
from tests.support.require import require
from tests.support.service import ROOT

FILES = ("compose.yaml", "compose.cpu.yaml", ".env.example", "Dockerfile.embed")


@pytest.fixture
def project(tmp_path: Path) -> Qmdctl:
    """The true compose files with .env as they come; an engine is not asked for."""
    folder = tmp_path / "project"
    folder.mkdir()
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    shutil.copy(ROOT / ".env.example", folder / ".env")
    return Qmdctl(folder, tmp_path, {"DOCKER_HOST": f"unix://{tmp_path}/no-engine.sock"})


def refused(done: Ran, status: int, sentence: str, fix: str) -> None:
    assert done.status == status, done.err
    assert sentence in done.err
    assert fix in done.err
    assert done.out == ""
    assert "Traceback" not in done.err


def test_no_env_yet(project: Qmdctl) -> None:
    (project.folder / ".env").unlink()
    refused(project.run("up"), 2, "has no .env yet", "→ qmdctl init")


def test_a_misspelt_key(project: Qmdctl) -> None:
    with (project.folder / ".env").open("a") as file:
        file.write("EMBED_MODLE=x\n")
    refused(project.run("up"), 2, "EMBED_MODLE is not known", "did you mean EMBED_MODEL?")


def test_a_line_that_is_none(project: Qmdctl) -> None:
    with (project.folder / ".env").open("a") as file:
        file.write("EMBED_PORT: 8001\n")
    refused(project.run("up"), 2, ".env, line", "write KEY=value")


def test_bad_yaml(project: Qmdctl) -> None:
    with (project.folder / "compose.yaml").open("a") as file:
        file.write("services: [\n")
    refused(project.run("up"), 2, "compose.yaml, line", "git checkout compose.yaml")


def test_a_compose_file_that_is_not_there(project: Qmdctl) -> None:
    project.set(COMPOSE_FILE="compose.yaml:compose.mine.yaml")
    refused(project.run("up"), 2, "COMPOSE_FILE names compose.mine.yaml", "correct COMPOSE_FILE in .env")


def test_no_project(project: Qmdctl, tmp_path: Path) -> None:
    project.folder = tmp_path / "nowhere"
    refused(project.run("up"), 2, "has no compose.yaml", "name the folder that was cloned")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--cpu", "--gpu"), "--cpu and --gpu exclude each other"),
        (("--timeout", "soon"), "--timeout 'soon' is not a time"),
        (("--timeout", "0"), "--timeout '0' is not a time"),
        (("ember",), "There is no service 'ember'"),
    ],
)
def test_wrong_usage(project: Qmdctl, arguments: tuple[str, ...], sentence: str) -> None:
    refused(project.run("up", *arguments), 2, sentence, "  → ")


@pytest.mark.parametrize("verb", ["up", "status", "health"])
def test_no_engine(project: Qmdctl, verb: str) -> None:
    refused(project.run(verb), 3, "its socket is not there", "sudo systemctl start docker")


def test_an_engine_that_has_ended(project: Qmdctl, tmp_path: Path) -> None:
    path = tmp_path / "no-engine.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))  # nobody listens
    refused(project.run("up"), 3, "No Docker engine listens", "sudo systemctl start docker")


def test_an_engine_without_permission(project: Qmdctl, tmp_path: Path) -> None:
    """As a user who is not in the socket's group: the same Python, run as nobody."""
    require("root", os.geteuid() == 0 and shutil.which("setpriv") is not None, "only root can run a program as another user")
    path = tmp_path / "no-engine.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        path.chmod(0o600)
        for folder in (project.folder, tmp_path, *tmp_path.parents[:2]):
            folder.chmod(folder.stat().st_mode | 0o055)
        as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        environment = project.full_environment({"XDG_STATE_HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"})
        done = subprocess.run([*as_nobody, *project.command("up")], cwd="/", env=environment, capture_output=True, text=True, check=False)
    refused(Ran(done.returncode, done.stdout, done.stderr), 3, "does not let this user in", "sudo usermod -aG docker")


def test_errors_are_json_where_json_is_asked_for(project: Qmdctl) -> None:
    done = project.run("up", "--json")
    assert done.status == 3
    assert done.json["exit_code"] == 3
    assert "socket is not there" in done.json["error"]
