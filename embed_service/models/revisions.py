"""What was downloaded completely: requested revision → commit and files, in one JSON file beside the hub's cache.

    {"Qwen/Qwen3-Embedding-4B": {"main": {"commit": "5cf2…", "files": {"config.json": 727, …}}}}

A branch is thereby pinned at the first start, and a later start needs no network.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = "embed-service-revisions.json"


@dataclass(frozen=True)
class Pinned:
    """A complete download: `commit` is 40 hex digits; `files` maps names to sizes in bytes."""

    commit: str
    files: dict[str, int]

    def present_in(self, snapshot: Path) -> bool:
        """Whether every file is there with its size (links are followed)."""
        try:
            return all((snapshot / name).stat().st_size == size for name, size in self.files.items())
        except OSError:
            return False


class Revisions:
    """The record of one cache folder. Several processes may write it at once."""

    def __init__(self, cache: Path) -> None:
        self.path = cache / FILE

    def lookup(self, model_id: str, revision: str) -> Pinned | None:
        """What `revision` (branch, tag or commit) was pinned to, if it was downloaded completely."""
        entries = self._read().get(model_id, {})
        if revision in entries:
            return _pinned(entries[revision])
        found = (_pinned(entry) for entry in entries.values())
        return next((pinned for pinned in found if pinned is not None and pinned.commit == revision), None)

    def write(self, model_id: str, revision: str, pinned: Pinned) -> None:
        """Add or replace one entry, atomically. Raises OSError where the cache cannot be written."""
        with self._changing() as record:
            record.setdefault(model_id, {})[revision] = {"commit": pinned.commit, "files": pinned.files}

    def forget(self, model_id: str, commit: str) -> None:
        """Remove the entries of one commit: its files are about to go. Raises OSError where the cache cannot be written."""
        if not any(_commit(entry) == commit for entry in self._read().get(model_id, {}).values()):
            return
        with self._changing() as record:
            left = {name: entry for name, entry in record.get(model_id, {}).items() if _commit(entry) != commit}
            record[model_id] = left
            if not left:
                del record[model_id]

    def names(self, model_id: str, commit: str) -> list[str]:
        """The revisions (branch, tag, commit) that are pinned to this commit."""
        return sorted(name for name, entry in self._read().get(model_id, {}).items() if _commit(entry) == commit)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[dict[str, dict[str, Any]]]:
        from filelock import FileLock

        # The cache outlives a change of the service's user: another one must be able to take the lock.
        with FileLock(self.path.with_suffix(".lock"), mode=0o666):
            record = self._read()
            yield record
            handle, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=f".{FILE}.")
            try:
                with os.fdopen(handle, "w") as out:
                    json.dump(record, out, indent=1, sort_keys=True)
                    out.flush()
                    os.fsync(out.fileno())
                os.chmod(temporary, 0o644)
                os.replace(temporary, self.path)
            except BaseException:
                os.unlink(temporary)
                raise

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            record = json.loads(self.path.read_bytes())
        except (OSError, ValueError):  # none yet, or damaged: asking the hub again mends it
            return {}
        return {k: v for k, v in record.items() if isinstance(v, dict)} if isinstance(record, dict) else {}


def _pinned(entry: Any) -> Pinned | None:
    try:
        return Pinned(str(entry["commit"]), {str(name): int(size) for name, size in entry["files"].items()})
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _commit(entry: Any) -> str:
    return str(entry.get("commit", "")) if isinstance(entry, dict) else ""
