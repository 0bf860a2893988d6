"""qmdctl in a process of its own, which runs the code that is on the disk now: after a checkout that is the new release's.

This process keeps the code that it began with and judges the other: a release whose qmdctl does not even start is gone back from.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import qmdctl
from qmdctl.errors import QmdError
from qmdctl.lock import HELD
from qmdctl.process import uninterrupted
from qmdctl.releases.snapshot import OFF
from qmdctl.terminal import Terminal

END_SECONDS = 20.0  # for one that was interrupted, with the `docker compose` that it runs
REQUEST_SECONDS = "60"  # the first generation after a start may compile


@dataclass(frozen=True)
class Broken:
    """A link of `qmdctl health` that does not hold."""

    service: str
    link: str
    detail: str
    fix: str

    @property
    def name(self) -> str:
        return f"{self.service}, {self.link}"


def up(project: Path, terminal: Terminal, *options: str) -> None:
    """`qmdctl up`, unrecorded. QmdError when it fails."""
    terminal.echo_command(" ".join(["qmdctl up", *options]))
    status, _ = _run(project, "up", *options)
    if status:
        raise QmdError(f"qmdctl up failed (exit status {status}): its words are above", "qmdctl logs; qmdctl doctor")


def stop(project: Path, terminal: Terminal) -> None:
    """`qmdctl stop`."""
    terminal.echo_command("qmdctl stop")
    _run(project, "stop")


def broken_links(project: Path, terminal: Terminal) -> list[Broken]:
    """What `qmdctl health` finds broken with real requests. QmdError where it does not come to a result."""
    terminal.echo_command("qmdctl health")
    status, out = _run(project, "health", "--json", "--timeout", REQUEST_SECONDS, capture=True)
    try:
        data: Any = json.loads(out)
        return [Broken(one["service"], one["link"], one["detail"], one["fix"] or "") for one in data["links"] if one["state"] == "broken"]
    except (ValueError, KeyError, TypeError):
        raise QmdError(f"qmdctl health came to no result (exit status {status}): its words are above", "qmdctl health") from None


def _run(project: Path, *arguments: str, capture: bool = False) -> tuple[int, str]:
    """(exit status, what it printed); uncaptured it goes to our stderr. After Ctrl-C it is waited for: two must not change the stack."""
    child = subprocess.Popen(
        command(project, *arguments),
        env={**os.environ, OFF: "1", HELD: "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if capture else 2,
        text=True,
    )
    try:
        out, _ = child.communicate()
    except BaseException:
        with uninterrupted():
            child.send_signal(signal.SIGINT)
            try:
                child.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        raise
    return child.returncode, out or ""


def command(project: Path, *arguments: str) -> list[str]:
    """What runs a qmdctl like this one."""
    # `python -m` looks in the current folder first: one that is installed apart would find the checkout's code there.
    return [sys.executable, *([] if runs_from(project) else ["-P"]), "-m", "qmdctl", "--project", str(project), *arguments]


def preload() -> None:
    """Import all of qmdctl: what is imported after a checkout would be another release's."""
    for module in pkgutil.walk_packages(qmdctl.__path__, "qmdctl."):
        if not module.name.endswith("__main__"):
            with contextlib.suppress(ImportError):  # of a part whose packages are not installed here
                importlib.import_module(module.name)


def runs_from(project: Path) -> bool:
    """Whether this qmdctl is the checkout's own code."""
    return Path(qmdctl.__file__).resolve().is_relative_to(project.resolve())
