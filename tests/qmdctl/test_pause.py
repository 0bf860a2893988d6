"""How qmdctl speaks to the service's control, on the real service; only the way into its container is FAKE."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from qmdctl.commands.resume import load_embed
from qmdctl.control import as_object, control, phase_of_line
from qmdctl.engine import Container
from qmdctl.errors import MissingError, QmdError, WaitTimeoutError
from qmdctl.probes import Broken, Probe
from qmdctl.startup.causes import cause_of
from qmdctl.startup.display import PlainDisplay
from qmdctl.startup.estimate import Estimate
from qmdctl.startup.phases import phase_of
from qmdctl.terminal import Terminal
from tests.qmdctl.containers import container
from tests.support.service import ROOT, ServiceProcess, poll

LONG = 300.0  # seconds, on a machine that does much else

pytestmark = pytest.mark.timeout(900)

DOCKER = """#!/bin/sh
# FAKE docker: `docker exec -i NAME COMMAND…` runs the command here, in the service's environment.
shift 3
cd {root} && exec "$@"
"""


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    folder = tmp_path_factory.mktemp("pause")
    with ServiceProcess({"CONTROL_SOCKET": str(folder / "c" / "s"), "LOAD_WAIT_SECONDS": "0.2"}, folder / "service.log") as service:
        service.wait_healthy(LONG)
        yield service


@pytest.fixture
def embed(box: ServiceProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Container:
    """The service as a container that `control` can speak to."""
    docker = tmp_path / "bin" / "docker"
    docker.parent.mkdir()
    docker.write_text(DOCKER.format(root=ROOT))
    docker.chmod(0o755)
    python = Path(os.environ.get("VIRTUAL_ENV") or ROOT / ".venv") / "bin"
    monkeypatch.setenv("PATH", f"{docker.parent}:{python}:{os.environ['PATH']}")
    for name in ("CONTROL_SOCKET", "PORT", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, box.environment[name])
    return container(health="healthy", probe={"status": "ok", "phase": "ready"})


def health(box: ServiceProcess) -> str:
    return str(box.health()[1]["status"])


def test_pause_and_resume_with_the_display_of_a_start(box: ServiceProcess, embed: Container) -> None:
    with httpx.Client(trust_env=False) as client:
        pause_and_resume(box, embed, Probe("embed", box.url, client=client))


def pause_and_resume(box: ServiceProcess, embed: Container, probe: Probe) -> None:
    assert control(embed, Terminal(), "pause")["state"] == "paused"
    assert health(box) == "paused"
    with pytest.raises(Broken, match="paused") as broken:
        probe.health()
    assert broken.value.fix == "qmdctl resume embed"
    assert httpx.post(f"{box.url}/v1/embeddings", json={"input": "a"}, timeout=10).status_code == 503

    said = io.StringIO()
    terminal = Terminal()
    with redirect_stderr(said):
        load_embed(embed, terminal, PlainDisplay(terminal, Estimate({})), None)
    assert health(box) == "ok"
    assert re.search(r"embed: loading weights", said.getvalue())
    assert probe.health() == "200"
    assert httpx.post(f"{box.url}/v1/embeddings", json={"input": "a"}, timeout=LONG).status_code == 200


def test_ctrl_c_in_a_resume_goes_on_loading(box: ServiceProcess, embed: Container) -> None:
    control(embed, Terminal(), "pause")

    def interrupt(line: dict[str, object]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        control(embed, Terminal(), "resume", on_line=interrupt)
    poll(lambda: health(box) == "ok", LONG, "the models")


def test_what_was_not_done_has_its_kind(box: ServiceProcess, embed: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(QmdError, match="no/such/folder") as refused:
        control(embed, Terminal(), "switch", "--rerank-model", "/no/such/folder")
    assert (type(refused.value), health(box)) == (QmdError, "ok")
    control(embed, Terminal(), "pause")
    with pytest.raises(WaitTimeoutError):
        control(embed, Terminal(), "resume", "--timeout", "0.001")
    assert control(embed, Terminal(), "resume")["done"] is True
    with pytest.raises(QmdError, match="ended with status 2"):
        control(embed, Terminal(), "pause", "--sooner")
    monkeypatch.setenv("CONTROL_SOCKET", "/nowhere/s")
    with pytest.raises(MissingError, match="CONTROL_SOCKET=/nowhere/s"):
        control(embed, Terminal(), "pause")


@pytest.mark.parametrize(
    ("state", "probe", "phase", "ready", "fix"),
    [
        ("running", {"status": "paused", "phase": "paused"}, "paused", False, "qmdctl resume embed"),
        ("paused", {}, "paused", False, "docker unpause qmd-embed"),
        ("running", {"status": "idle", "phase": "idle"}, "idle", True, ""),
    ],
)
def test_a_paused_service_and_an_idle_one(state: str, probe: dict[str, str], phase: str, ready: bool, fix: str) -> None:
    seen = replace(container(state=state, health="healthy"), probe=probe)
    found = phase_of(seen)
    assert (found.name, found.ready) == (phase, ready)
    if fix:
        assert cause_of(seen, found, []).fix == fix


def test_lines_of_control() -> None:
    assert phase_of_line({"phase": "canary"}).name == "warming"
    assert phase_of_line({"phase": "going_back"}).name == "starting"
    assert phase_of_line({"phase": "downloading", "done_bytes": 5, "total_bytes": 10}).text == "downloading 5 B of 10 B"
    assert as_object(b"Error response from daemon") == as_object(b"[1]") == {}
