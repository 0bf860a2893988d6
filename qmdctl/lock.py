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
HELD = "QMDCTL_LOCK_HELD"  # in the environment of a child whose parent holds the lock, and waits for it


@contextlib.contextmanager
def exclusive(project: Path, verb: str) -> Iterator[None]:
    """Hold the project for `verb`. QmdError naming who holds it.

    No lock where its file can be neither made nor read, or the file system has no locks, and none in a child of the holder.
    """
    handle = None if os.environ.get(HELD) else _open(project / FOLDER / FILE)
    if handle is None:
        yield
        return
    try:
        if _lock(handle):
            _tell(handle, json.dumps({"verb": verb, "pid": os.getpid(), "since": time.strftime("%H:%M:%S")}))
        yield
    finally:
        os.close(handle)  # which unlocks


def _open(path: Path) -> int | None:
    try:
        path.parent.mkdir(exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError:
        with contextlib.suppress(OSError):
            return os.open(path, os.O_RDONLY)  # root's, after a sudo, say: it locks as well, and only cannot tell for whom
    return None


def _lock(handle: int) -> bool:
    """False where the file system has no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fix = "wait until it has ended, or end it with Ctrl-C"
        raise QmdError(f"Another command is changing this project: {_holder(handle)}", fix) from None
    except OSError:
        return False
    return True


def _tell(handle: int, who: str) -> None:
    """For whoever finds it locked. On a full disk, and in another user's file, it stays untold."""
    with contextlib.suppress(OSError):
        os.truncate(handle, 0)
        os.pwrite(handle, who.encode(), 0)


def _holder(handle: int) -> str:
    try:
        told = json.loads(os.pread(handle, 4096, 0))
        return f"qmdctl {told['verb']}, process {told['pid']}, since {told['since']}"
    except (ValueError, KeyError, TypeError, OSError):
        return "it has not said which it is"
