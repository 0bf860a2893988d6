"""What a switch is refused for, how one that was cut off ends, and whose code its children run. The engine is FAKE."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qmdctl import engine as engines
from qmdctl.commands import upgrade
from qmdctl.compose import Compose
from qmdctl.engine import Container
from qmdctl.errors import ConfigurationError, QmdError
from qmdctl.project import Project
from qmdctl.releases import apply as applying
from qmdctl.releases import child, steps, switch
from qmdctl.releases.apply import WentBack
from qmdctl.releases.journal import Journal, Step
from qmdctl.releases.record import FAILED, History
from qmdctl.settings import Settings, load_settings
from qmdctl.terminal import Terminal
from tests.qmdctl.containers import container
from tests.qmdctl.projects import settings_of
from tests.support.require import require
from tests.support.service import ROOT

CPU = ("compose.yaml", "compose.cpu.yaml")


class FakeEngine:
    """FAKE: these containers, and no image."""

    def __init__(self, *containers: Container) -> None:
        self._containers = {one.service: one for one in containers}
        self.client = SimpleNamespace(images=SimpleNamespace(list=lambda **_: []))

    def containers(self, _: str) -> dict[str, Container]:
        return self._containers


def hashes(settings: Settings) -> dict[str, str]:
    """Compose's own, which needs no engine."""
    require("docker", bool(shutil.which("docker")), "no docker command")
    lines = Compose(settings, Terminal()).run("config", "--hash", "*", capture=True, echo=False).stdout.splitlines()
    return dict(line.split() for line in lines if line)  # type: ignore[misc]


@pytest.mark.parametrize(("now", "refused"), [("", True), ("compose.yaml:compose.cpu.yaml", False)])
def test_a_stack_that_runs_from_other_files_than_env_s_is_not_switched(tmp_path: Path, now: str, refused: bool) -> None:
    """As after `up --cpu`: going back brings up what .env says."""
    settings_of(tmp_path)
    project = Project(tmp_path, "test")
    made = hashes(load_settings(project, {"COMPOSE_FILE": ":".join(CPU)}, {}))
    if now:
        with (tmp_path / ".env").open("a") as out:
            out.write(f"COMPOSE_FILE={now}\n")
    engine: Any = FakeEngine(container("embed", config_hash=made["embed"], compose_files=CPU))
    settings = load_settings(project, environment={})
    if not refused:
        switch.need_same_files(engine, settings, Terminal())
        return
    with pytest.raises(
        ConfigurationError, match=r"embed runs from compose.yaml, compose.cpu.yaml, and .env leads to compose.yaml"
    ) as caught:
        switch.need_same_files(engine, settings, Terminal())
    assert caught.value.fix.startswith("put COMPOSE_FILE=compose.yaml:compose.cpu.yaml into .env;")


def test_a_container_that_other_files_would_not_change_is_no_hindrance(tmp_path: Path) -> None:
    """Compose leaves it, and its label names the files of before."""
    settings = settings_of(tmp_path)
    engine: Any = FakeEngine(
        container("embed", config_hash=hashes(settings)["embed"], compose_files=CPU),
        container("vllm", state="exited", config_hash="another", compose_files=CPU),
        container("by-hand", config_hash=""),
    )
    switch.need_same_files(engine, settings, Terminal())


@pytest.mark.parametrize("folder", ["/srv/qmd", "/srv/a, b"])
def test_the_files_of_a_container_as_seen_from_its_folder(folder: str) -> None:
    files = f"{folder}/compose.yaml,{folder}/own/more.yaml,/srv/common.yaml"
    labels = {engines.FOLDER_LABEL: folder, engines.FILES_LABEL: files}
    assert engines._compose_files(labels) == ("compose.yaml", "own/more.yaml", "../common.yaml")
    assert engines._compose_files({}) == ()


@pytest.fixture
def cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A rollback that was; a step named `bad` fails."""

    def do(step: Step, _: object) -> None:
        if step.kind == "bad":
            raise QmdError("it broke")

    settings_of(tmp_path)
    monkeypatch.setattr(applying, "do", do)
    monkeypatch.setattr(applying, "undo", lambda *_: None)
    monkeypatch.setattr(engines.Engine, "connect", FakeEngine)
    monkeypatch.setattr(switch.images, "untag", lambda *_: None)
    return Project(tmp_path, "test")


def test_a_rollback_that_goes_on_is_reported_as_one(cut_off: Project, capsys: pytest.CaptureFixture[str]) -> None:
    Journal(cut_off.folder, "rollback", "rollback to 3", [Step("good", "do it")]).save()
    upgrade.settle(cut_off, Terminal(json_output=True), resume=True)
    assert json.loads(capsys.readouterr().out)["status"] == "rolled back"
    assert Journal.read(cut_off.folder) is None


def test_one_that_goes_on_and_fails_is_in_the_history(cut_off: Project) -> None:
    Journal(cut_off.folder, "rollback", "rollback to 3", [Step("checkout", "go", {"commit": "c" * 40}), Step("bad", "do it")]).save()
    with pytest.raises(WentBack, match="rollback to 3 failed: it broke"):
        upgrade.settle(cut_off, Terminal(), resume=True)
    (failed,) = History(cut_off.folder).records
    assert (failed.result, failed.title, failed.release.commit) == (FAILED, "rollback to 3", "c" * 40)


def test_on_a_disk_that_is_full_env_comes_back(cut_off: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    require("root", os.geteuid() == 0, "only root can mount a disk")
    text = (cut_off.folder / ".env").read_text()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(cut_off.folder)], check=True)
    try:
        settings_of(cut_off.folder)
        (cut_off.folder / ".qmdctl").mkdir()

        def do(step: Step, there: steps.Machine) -> None:
            steps.do(step, there)
            if step.kind == "file":
                (cut_off.folder / "filler").write_bytes(bytes(8 << 20))

        monkeypatch.setattr(applying, "do", do)
        monkeypatch.setattr(applying, "undo", steps.undo)
        taken = [steps.before_step(None, {}, False), steps.file_step(cut_off.folder, cut_off.env_path, f"{text}A=b\n", "Write .env")]
        Journal(cut_off.folder, "upgrade", "upgrade to x", taken).save()
        with pytest.raises(WentBack, match="No space left on device"):
            upgrade.settle(cut_off, Terminal(), resume=True)
        assert cut_off.env_path.read_text() == text
        assert Journal.read(cut_off.folder) is None
    finally:
        subprocess.run(["umount", "--lazy", str(cut_off.folder)], check=True)


def test_a_qmdctl_installed_apart_does_not_run_the_checkout_s_code(tmp_path: Path) -> None:
    (tmp_path / "qmdctl").mkdir()
    (tmp_path / "qmdctl/__init__.py").touch()
    (tmp_path / "qmdctl/__main__.py").write_text("raise SystemExit('the code of the checkout')\n")
    there = {"PATH": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(child.command(tmp_path, "--help"), cwd=tmp_path, env=there, capture_output=True, text=True, check=False)
    assert (done.returncode, "Usage" in done.stdout) == (0, True), done.stderr
    assert "-P" not in child.command(ROOT)
