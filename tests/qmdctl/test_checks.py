"""The checks, on machines that are not here: FAKE hardware and recorded answers of programs.

Against the real engine: tests/stack/test_doctor.py.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from qmdctl.checks import NAMES, Context, exit_code, run_checks
from qmdctl.checks.ports import free, holder
from qmdctl.checks.vllm_age import check as vllm_age
from qmdctl.errors import ConfigurationError
from qmdctl.process import Completed, ProcessError
from tests.qmdctl.containers import container
from tests.qmdctl.contexts import DESKTOP, REMOTE, FakeEngine, NoEngine, found, gpu, levels, machine, one


def test_no_engine_fails_first_and_what_needs_it_is_skipped(tmp_path: Path) -> None:
    findings = list(run_checks(NoEngine(tmp_path, machine(gpu()), {"HF_HUB_OFFLINE": "1"})))
    assert (findings[0].check, findings[0].level, findings[0].fix) == ("engine", "failure", "start it")
    assert {finding.check for finding in findings if finding.level == "skipped"} >= {
        "ports",
        "disk",
        "toolkit",
        "cache_volume",
        "gpu_container",
    }
    assert exit_code(findings) == 3


@pytest.mark.parametrize(
    ("answer", "level", "words"),
    [
        (Completed((), 0, "2.24.1\n", ""), "ok", "2.24.1"),
        (Completed((), 0, "v2.30.3-desktop.1\n", ""), "ok", "2.30"),
        (Completed((), 0, "2.20.3\n", ""), "failure", "older than 2.24"),
        (Completed((), 125, "", "docker: 'compose' is not a docker command.\n"), "failure", "does not answer"),
    ],
)
def test_compose_version(tmp_path: Path, answer: Completed, level: str, words: str) -> None:
    context = NoEngine(tmp_path, machine())
    context.answers["version"] = answer
    assert words in one(context, "compose_version", level).what


def test_a_port_names_its_holder() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not free(port)
        assert holder(port).startswith("pid ")
        assert "pytest" in holder(port)
    assert free(port)
    assert holder(port) == ""


@pytest.mark.parametrize(("number", "is_free"), [(errno.EACCES, True), (errno.EADDRINUSE, False)])
def test_a_port_that_this_user_may_not_bind_is_not_held(number: int, is_free: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAKE: the refusal, since root may bind every port."""

    def bind(self: socket.socket, address: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(socket.socket, "bind", bind)
    assert free(80) is is_free


def test_services_that_are_not_started_are_not_checked(tmp_path: Path) -> None:
    values = {"VLLM_PORT": "8001", "VLLM_DTYPE": "fp8", "VLLM_IMAGE": "nvcr.io/nvidia/vllm:23.01-py3", "VLLM_GPU": "5"}
    context = FakeEngine(tmp_path, machine(gpu()), values, services=["embed"])
    for name in ("env_lint", "gpu_host", "driver", "memory"):
        assert levels(context, name) == ["ok"], name
    assert levels(context, "vllm_age") == ["skipped"]
    assert FakeEngine(tmp_path, machine(), services=["vllm"]).services == ["embed", "vllm"], "vllm depends on it"


def test_services_of_an_override_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "compose.override.yaml").write_text("services: {caddy: {image: 'caddy:2'}}\n")
    values = {"COMPOSE_FILE": "compose.yaml:compose.override.yaml", "HF_HUB_OFFLINE": "1"}
    context = FakeEngine(tmp_path, machine(gpu()), values, containers={"caddy": container("caddy")})
    assert "caddy" in context.services
    told = [finding for finding in run_checks(context, [n for n in NAMES if n != "gpu_container"]) if "caddy" in finding.what]
    assert told == []


@pytest.mark.parametrize(
    ("host", "info", "remote"),
    [
        ("unix:///run/user/1000/docker.sock", REMOTE, False),
        ("ssh://me@spark", REMOTE, True),
        ("tcp://192.168.1.5:2376", REMOTE, True),
        ("tcp://127.0.0.1:2375", REMOTE, True),
        ("tcp://127.0.0.1:2375", {}, False),
        ("tcp://localhost:2375", DESKTOP, False),
    ],
)
def test_an_engine_on_another_machine(tmp_path: Path, host: str, info: dict[str, str], remote: bool) -> None:
    context = FakeEngine(tmp_path, machine(error="nvidia-smi cannot be run"), host=host, info=info)
    assert context.remote is remote
    finding = found(context, "engine")[0]
    assert finding.level == ("failure" if remote else "ok")
    assert ("clone the project there" in finding.fix) is remote
    for name in ("gpu_host", "memory", "ports", "secrets") if remote else ():
        (skipped,) = found(context, name)
        assert (skipped.level, skipped.what) == ("skipped", "the engine runs on another machine")


def test_a_check_that_breaks_does_not_end_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(error: Exception) -> Callable[..., Completed]:
        def run(*arguments: object, **options: object) -> Completed:
            raise error

        return run

    context = FakeEngine(tmp_path, machine(gpu()), images={"embed": {}})
    late = ProcessError(Completed(("docker", "run"), 124, "", "no answer within 60 s"))
    for error, level, status in ((late, "failure", 3), (ConfigurationError("x", "y"), "failure", 2), (OSError("no answer"), "warning", 0)):
        monkeypatch.setattr(context, "run", raising(error))
        findings = list(run_checks(context, ["gpu_container", "vllm_age"]))
        assert [finding.level for finding in findings] == [level, "ok"]
        assert exit_code(findings) == status
    assert "no answer within 60 s" in one(_with(context, raising(late)), "gpu_container", "failure").why


def _with(context: Context, runner: Callable[..., Completed]) -> Context:
    context.run = runner
    return context


@pytest.mark.parametrize(
    ("image", "today", "level"),
    [
        ("nvcr.io/nvidia/vllm:25.12.post1-py3", datetime(2026, 11, 1, tzinfo=UTC), "ok"),
        ("nvcr.io/nvidia/vllm:25.12.post1-py3", datetime(2027, 8, 1, tzinfo=UTC), "warning"),
    ],
)
def test_age_of_the_vllm_image(tmp_path: Path, image: str, today: datetime, level: str) -> None:
    (finding,) = vllm_age(NoEngine(tmp_path, machine(), {"VLLM_IMAGE": image}), today)
    assert finding.level == level


def test_architecture(tmp_path: Path) -> None:
    context = NoEngine(tmp_path, machine(gpu()), images={"vllm": {"Architecture": "arm64"}})
    context.__dict__["info"] = {"Architecture": "x86_64"}
    finding = one(context, "architecture", "failure")
    assert "built for arm64" in finding.what
    assert "amd64" in finding.why
