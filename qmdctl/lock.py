"""One command at a time changes a project: a lock that ends with its process, so that none is left behind."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from qmdctl.errors import QmdError

FOLDER = ".qmdctl"  # in the project: what qmdctl keeps of it
FILE = "lock"


@contextlib.contextmanager
def exclusive(project: Path, verb: str) -> Iterator[None]:
    """Hold the project for `verb`. QmdError naming who holds it; no lock where the folder cannot be written."""
    path = project / FOLDER / FILE
    try:
        path.parent.mkdir(exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError:
        yield
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise QmdError(f"Another command is changing this project: {_holder(handle)}", "wait until it has ended") from None
        os.truncate(handle, 0)
        os.pwrite(handle, json.dumps({"verb": verb, "pid": os.getpid(), "since": time.strftime("%H:%M:%S")}).encode(), 0)
        yield
    finally:
        os.close(handle)  # which unlocks


def _holder(handle: int) -> str:
    try:
        told = json.loads(os.pread(handle, 4096, 0))
        return f"qmdctl {told['verb']}, process {told['pid']}, since {told['since']}"
    except (ValueError, KeyError, TypeError, OSError):
        return "one that has just begun"
