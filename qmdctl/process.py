"""The one place that runs a program."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qmdctl.errors import MissingError, QmdError


@dataclass(frozen=True)
class Completed:
    """What a program left: exit status and both outputs (empty where they were passed through)."""

    command: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str

    @property
    def ok(self) -> bool:
        return self.returncode == 0


class ProcessError(QmdError):
    """A program that failed; `completed` has its status and outputs."""

    def __init__(self, completed: Completed) -> None:
        self.completed = completed
        super().__init__(f"{shlex.join(completed.command)} ended with status {completed.returncode}", details=completed.stderr[-4000:])


def run(
    command: Sequence[str],
    *,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    capture: bool = True,
    check: bool = True,
    timeout_seconds: float | None = None,
    stdin: str | None = None,
) -> Completed:
    """Run `command` to its end; its output is kept (`capture`) or goes to our stderr. `environment` is added to our own.

    Raises ProcessError when it fails and `check` is set or when it ran past `timeout_seconds`, MissingError where it cannot be run.
    """
    full = {**os.environ, **environment} if environment else None
    try:
        done = subprocess.run(
            list(command),
            cwd=cwd,
            env=full,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            stdout=subprocess.PIPE if capture else 2,
            stderr=subprocess.PIPE if capture else None,
            text=True,
            errors="replace",
            timeout=timeout_seconds,
            check=False,
        )
    except OSError as error:  # not there, not ours to run, or no program
        raise MissingError(f"{command[0]} cannot be run: {error.strerror}", f"install {command[0]}, or put it on PATH") from None
    except subprocess.TimeoutExpired:
        raise ProcessError(Completed(tuple(command), 124, "", f"no answer within {timeout_seconds:g} s")) from None
    completed = Completed(tuple(command), done.returncode, done.stdout or "", done.stderr or "")
    if check and not completed.ok:
        raise ProcessError(completed)
    return completed


def stream(
    command: Sequence[str], *, cwd: Path | None = None, environment: Mapping[str, str] | None = None, attended: bool = False
) -> Iterator[str]:
    """The lines that `command` prints, as they come; its stderr is passed through. Raises ProcessError when it fails.

    `attended`: its stdin is open as long as it is read here, so that a program which looks there ends when this one does. The terminal's
    Ctrl-C does not reach it: this program decides what it means.
    """
    full = {**os.environ, **environment} if environment else None
    stdin = subprocess.PIPE if attended else subprocess.DEVNULL
    with subprocess.Popen(
        list(command), cwd=cwd, env=full, stdin=stdin, stdout=subprocess.PIPE, text=True, errors="replace", start_new_session=attended
    ) as child:
        assert child.stdout is not None
        try:
            for line in child.stdout:
                yield line.rstrip("\n")
        finally:
            if child.stdin is not None:
                child.stdin.close()
    if child.returncode:
        raise ProcessError(Completed(tuple(command), child.returncode, "", ""))


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C does nothing in the block: what would be left half-done is finished."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def talk(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A program that is spoken to over its three pipes; it ends with the block. MissingError where it cannot be run."""
    try:
        program = subprocess.Popen(list(command), bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except OSError as error:  # not there, not ours to run, or no program
        raise MissingError(f"{command[0]} cannot be run: {error.strerror}", f"install {command[0]}, or put it on PATH") from None
    with program:
        try:
            yield program
        finally:
            program.kill()
