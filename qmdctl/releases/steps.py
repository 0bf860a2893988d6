"""The steps of a switch, and how each is undone.

before     nothing is done; undone, last of all: the image names lead to what they did, and what ran is brought up again
file       .env, or the list of images that are not built
checkout   the project's files
packages   qmdctl's own Python packages, where it runs from the checkout and its lock changed
up         `qmdctl up` with what is there now
verify     `qmdctl health`: real requests
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qmdctl import env_file
from qmdctl.engine import Engine
from qmdctl.errors import ConfigurationError, QmdError
from qmdctl.lock import FOLDER
from qmdctl.process import run
from qmdctl.releases import child, images
from qmdctl.releases.checkout import Checkout, Target
from qmdctl.releases.journal import BEGUN, Journal, Step
from qmdctl.releases.record import Record
from qmdctl.settings import Settings
from qmdctl.terminal import Terminal

EDITED = "env.edited"  # in .qmdctl: .env as its owner had it when going back replaced it


@dataclass
class Machine:
    """What the steps act on."""

    project: Path
    engine: Engine
    terminal: Terminal

    @property
    def checkout(self) -> Checkout:
        return Checkout(self.project)


def before_step(record: Record | None, names: dict[str, str], running: bool) -> Step:
    """`names`: image name → ID as they are now."""
    title = f"What runs now is number {record.number}" if record else "What is here now"
    return Step("before", title, {"names": names, "running": running})


def file_step(project: Path, path: Path, after: str, title: str) -> Step:
    before = path.read_text(encoding="utf-8") if path.exists() else None
    return Step("file", title, {"path": str(path.relative_to(project)), "before": before, "after": after})


def env_step(settings: Settings, after: str) -> Step:
    """.env as it was planned from `settings`. ConfigurationError where it was edited since: pulls and builds take their time."""
    if env_file.read(settings.project.env_path).render() != settings.env.render():
        raise ConfigurationError(".env was edited meanwhile, and nothing was changed", "begin again: what was pulled or built is kept")
    return file_step(settings.project.folder, settings.project.env_path, after, "Write .env")


def checkout_step(checkout: Checkout, target: Target) -> Step:
    there = {"before_commit": checkout.commit, "before_branch": checkout.branch}
    return Step("checkout", f"Check out {target.name}", {"commit": target.commit, "branch": target.branch, **there})


def packages_step() -> Step:
    return Step("packages", "Install what this qmdctl needs")


def up_step(options: list[str]) -> Step:
    return Step("up", "Bring it up", {"options": options})


def verify_step(excused: list[str]) -> Step:
    """`excused`: links of sidecars that were broken before."""
    return Step("verify", "Send real requests", {"excused": excused})


def do(step: Step, machine: Machine) -> None:
    """QmdError when it fails."""
    facts = step.facts
    if step.kind == "file":
        _replace(machine.project / facts["path"], facts)
    elif step.kind == "checkout":
        if step.cut_off:
            machine.checkout.go_over(facts["commit"], facts["branch"], facts["before_commit"])
        else:
            machine.checkout.go(facts["commit"], facts["branch"])
    elif step.kind == "packages":
        _packages(machine)
    elif step.kind == "up":
        child.up(machine.project, machine.terminal, *facts["options"])
    elif step.kind == "verify":
        _verify(machine, facts["excused"])


def undo(step: Step, machine: Machine, journal: Journal) -> None:
    """QmdError when it fails. Undoing what did not happen changes nothing."""
    facts = step.facts
    if step.kind == "file":
        _restore(machine, facts)
    elif step.kind == "checkout":
        _check_out_again(machine.checkout, step, journal)
    elif step.kind == "before":
        if journal.has_begun("packages"):  # only now that the files are back
            _packages(machine)
        gone = _named_again(machine, facts["names"])
        if journal.has_begun("up") and facts["running"]:
            child.up(machine.project, machine.terminal, *([] if gone else ["--no-build"]), "--skip-checks")
            _verify(machine, None)
        elif journal.has_begun("up"):
            child.stop(machine.project, machine.terminal)
        with contextlib.suppress(QmdError):  # what runs is back; the name is taken away by the next upgrade
            images.untag(machine.engine, images.NEXT)


def _named_again(machine: Machine, names: dict[str, str]) -> list[str]:
    """Have each image name lead to the ID that it did; those whose image is gone, which are built or pulled again."""
    gone = [
        name
        for name, image in names.items()
        if images.identity(machine.engine, name)[0] != image and not images.tag(machine.engine, image, name)
    ]
    for name in gone:
        machine.terminal.note(f"The image that {name} was is gone ({names[name][:19]}): it is built or pulled again.", "yellow")
    return gone


def _verify(machine: Machine, excused: list[str] | None) -> None:
    """With `excused` None what does not hold is only told: what ran before need not have been whole."""
    broken = child.broken_links(machine.project, machine.terminal)
    if excused is None:
        for one in broken:
            machine.terminal.note(f"✗ {one.name}: {one.detail}", "yellow")
        return
    wrong = [one for one in broken if one.name not in excused]
    if wrong:
        raise QmdError(f"A real request fails: {wrong[0].name}: {wrong[0].detail}", wrong[0].fix)


def _replace(path: Path, facts: dict[str, Any]) -> None:
    there = path.read_text(encoding="utf-8") if path.exists() else None
    if there not in (facts["before"], facts["after"]):
        raise QmdError(f"{facts['path']} was edited meanwhile", "begin again: what was pulled or built is kept")
    _write(path, facts["after"])


def _write(path: Path, text: str | None) -> None:
    if text is None:
        path.unlink(missing_ok=True)
    else:
        path.parent.mkdir(exist_ok=True)
        env_file.write(path, text)


def _restore(machine: Machine, facts: dict[str, Any]) -> None:
    path = machine.project / facts["path"]
    there = path.read_text(encoding="utf-8") if path.exists() else None
    if there == facts["before"]:
        return
    if there not in (None, facts["after"]):
        kept = machine.project / FOLDER / EDITED
        kept.touch(mode=0o600)
        env_file.write(kept, there or "")
        machine.terminal.note(f"{facts['path']} was edited since: that text is in {kept}.", "yellow")
    _write(path, facts["before"])


def _check_out_again(checkout: Checkout, step: Step, journal: Journal) -> None:
    facts = step.facts
    commit, branch = facts["before_commit"], facts["before_branch"]
    here = (checkout.commit, checkout.branch) == (commit, branch)
    if step.state == BEGUN or step.cut_off:
        if not here or checkout.changes():
            checkout.go_over(commit, branch, facts["commit"])
    elif not here:
        step.cut_off = True  # from here on, where this ends in the middle
        with contextlib.suppress(ConfigurationError):
            journal.save()
        checkout.go(commit, branch)  # which refuses where a file was edited since


def _packages(machine: Machine) -> None:
    # The interpreter behind this environment's: the environment itself is what may be made anew.
    command = [getattr(sys, "_base_executable", sys.executable), "-m", "scripts.bootstrap", "cli"]
    machine.terminal.echo_command("python3 -m scripts.bootstrap cli")
    done = run(command, cwd=machine.project, capture=False, check=False)
    if not done.ok:
        raise QmdError("qmdctl's own packages could not be installed: the words above say why", "make up")
