"""The record of complete downloads in the model cache, which the embed service keeps too (embed_service/models/revisions.py).

    {"Qwen/Qwen3-4B": {"main": {"commit": "1cfa…", "files": {"config.json": 727, …}}}}

What it shows complete is served without a network, at the commit that it had.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

NAME = "embed-service-revisions.json"


def lookup(cache: Path, model: str, revision: str) -> tuple[str, dict[str, int]] | None:
    """(commit, files with their sizes in bytes) of a download that was complete once."""
    entries = _read(cache / NAME).get(model)
    entry = entries.get(revision) if isinstance(entries, dict) else None
    try:
        return str(entry["commit"]), {str(name): int(size) for name, size in entry["files"].items()}  # type: ignore[index]
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def complete(snapshot: Path, files: dict[str, int]) -> bool:
    """Whether every file is there with its size (links are followed)."""
    try:
        return all((snapshot / name).stat().st_size == size for name, size in files.items())
    except OSError:
        return False


def write(cache: Path, model: str, revision: str, commit: str, files: dict[str, int]) -> None:
    """Add or replace one entry, atomically, under the lock that the embed service takes. Raises OSError."""
    from filelock import FileLock

    path = cache / NAME
    # The cache outlives a change of QMD_UID: another user must be able to take the lock.
    with FileLock(path.with_suffix(".lock"), mode=0o666):
        record = _read(path)
        record.setdefault(model, {})[revision] = {"commit": commit, "files": files}
        handle, temporary = tempfile.mkstemp(dir=cache, prefix=f".{NAME}.")
        with os.fdopen(handle, "w") as out:
            json.dump(record, out, indent=1, sort_keys=True)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return {model: entries for model, entries in record.items() if isinstance(entries, dict)} if isinstance(record, dict) else {}


def shards(index: Path) -> list[str]:
    """The weight files that an index names."""
    weight_map = _read(index).get("weight_map", {})
    return sorted({str(name) for name in weight_map.values()})
