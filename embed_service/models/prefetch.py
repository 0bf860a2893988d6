"""`embed-service download MODEL[@REVISION]…`: models into the cache before they are served; one JSON object per line on stdout.

{"model": "Qwen/Qwen3-4B", "missing_bytes": 8060000000}                          for each, before the first byte
{"model": "Qwen/Qwen3-4B", "done_bytes": 1200, "total_bytes": 8060000000}        once a second while it moves
{"model": "Qwen/Qwen3-4B", "revision": "1cfa…", "path": "/models/hub/…"}         complete, and recorded
{"model": "Qwen/Qwen3-4B", "error": "…", "code": "no_disk"}                      failed; the others go on

A model that is neither EMBED_MODEL nor RERANK_MODEL is the generation server's, and the files are those that vLLM reads (generation.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any, NoReturn

from embed_service.errors import ModelError
from embed_service.models.hub import Listing, Located, download, locate, missing_bytes
from embed_service.models.revisions import Revisions
from embed_service.settings import Settings

_print_lock = threading.Lock()
REPORT_SECONDS = 1.0


def main(models: list[str], settings: Settings) -> int:
    """All at once; 0 when every one is complete, else 1. SIGINT and SIGTERM end the process; the next download goes on from there."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    names = list(dict.fromkeys(models))
    with ThreadPoolExecutor(len(names)) as pool:
        located = list(pool.map(lambda name: _locate(name, settings), names))
        results = list(pool.map(_fetch, names, located))
    return 0 if all(results) else 1


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    # An exception would wait in the pool's end until each download is complete; the default action does nothing in a container's process 1.
    os._exit(128 + number)


def _locate(name: str, settings: Settings) -> Located | None:
    model, _, revision = name.partition("@")
    try:
        found = locate(model, revision or None, settings)
    except ModelError as error:
        _say(model=name, error=error.message, code=error.code)
        return None
    missing = missing_bytes(found.wanted, found.found) if found.wanted and isinstance(found.found, Listing) else 0
    _say(model=name, missing_bytes=missing)
    return found


def _fetch(name: str, located: Located | None) -> bool:
    if located is None:
        return False
    last = 0.0

    def progress(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= REPORT_SECONDS or done == total:
            last = time.monotonic()
            _say(model=name, done_bytes=done, total_bytes=total)

    try:
        repository = download(located, progress)
    except ModelError as error:
        _say(model=name, error=error.message, code=error.code)
        return False
    _pin_commit(located, repository.revision)
    _say(model=name, revision=repository.revision, path=repository.path)
    return True


def _pin_commit(located: Located, commit: str) -> None:
    """A commit that was downloaded under a branch's name is recorded under its own as well: vLLM's start looks for that name alone."""
    if located.wanted is None or located.wanted.revision != commit:
        return
    revisions = Revisions(located.wanted.cache)
    pinned = revisions.lookup(located.wanted.id, commit)
    if pinned is not None and commit not in revisions.names(located.wanted.id, commit):
        with contextlib.suppress(OSError):  # the download stands all the same
            revisions.write(located.wanted.id, commit, pinned)


def _say(**fields: Any) -> None:
    with _print_lock:
        sys.stdout.write(json.dumps(fields) + "\n")
        sys.stdout.flush()
