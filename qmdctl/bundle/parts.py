"""A part of the bundle: a file in the archive, how it is got, and what came of it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from qmdctl.errors import QmdError
from qmdctl.process import run

PART_BYTES = 1 << 20  # of the end of what a part gave; logs end with what matters
COMMAND_SECONDS = 20.0
PLAIN = {"DOCKER_CLI_HINTS": "false", "COMPOSE_MENU": "false", "NO_COLOR": "1"}


@dataclass(frozen=True)
class Part:
    """`name`: the file in the archive. `how`: the command, or what was read. `get` gives the content or raises Failed."""

    name: str
    how: str
    get: Callable[[], bytes]


@dataclass(frozen=True)
class Collected:
    """What came of a part. `failed` says why where there is no content, or what was wrong with it."""

    part: Part
    content: bytes = b""
    failed: str = ""
    seconds: float = 0.0


class Failed(Exception):
    """Why a part could not be got; `content` is what there is all the same."""

    def __init__(self, why: str, content: bytes = b"") -> None:
        super().__init__(why)
        self.content = content


def collect(part: Part) -> Collected:
    """Get it. Nothing but Ctrl-C ends the bundle: what fails is a line of the manifest."""
    start = time.monotonic()
    failed = ""
    try:
        content = part.get()
    except Failed as error:
        content, failed = error.content, str(error)
    except Exception as error:
        content, failed = b"", f"{type(error).__name__}: {error}"
    if len(content) > PART_BYTES:
        content = b"[the beginning is left out]\n" + content[-PART_BYTES:].partition(b"\n")[2]
    return Collected(part, content, failed, time.monotonic() - start)


def command(
    name: str,
    words: Sequence[str],
    *,
    seconds: float = COMMAND_SECONDS,
    cwd: Path | None = None,
    shown: str = "",
    timestamps: bool = False,
    any_status: bool = False,
) -> Part:
    """The output of a program, also of one that failed.

    `timestamps`: each line begins with one, which puts both streams in one order. `any_status`: one other than 0 is an answer too.
    """

    def get() -> bytes:
        try:
            done = run(words, cwd=cwd, environment=PLAIN, check=False, timeout_seconds=seconds)
        except QmdError as error:
            raise Failed((error.details or error.message).strip()) from None
        # A document is spoilt by a warning behind it.
        text = done.stdout if name.endswith(".json") and done.stdout else done.stdout + done.stderr
        if timestamps:
            text = "".join(sorted(text.splitlines(keepends=True), key=lambda line: line.split(" ", 1)[0]))
        if not done.ok and not (any_status and text):
            raise Failed(f"exit status {done.returncode}", text.encode())
        return text.encode()

    return Part(name, shown or " ".join(words), get)


def file(name: str, path: Path, *, largest: int = PART_BYTES) -> Part:
    """The end of a file."""

    def get() -> bytes:
        try:
            with path.open("rb") as opened:
                size = os.fstat(opened.fileno()).st_size  # 0 in /proc, whose files are small and know no end
                opened.seek(max(0, size - largest))
                return opened.read(largest)
        except OSError as error:
            raise Failed(f"{path.name}: {error.strerror}") from None

    return Part(name, str(path), get)


def failing(name: str, how: str, why: str) -> Part:
    """One of which it is known beforehand that it cannot be got."""

    def get() -> bytes:
        raise Failed(why)

    return Part(name, how, get)
