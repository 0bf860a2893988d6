"""`embed-service cache`: what lies in the hub's cache, and removing some of it. One JSON object per line on stdout.

{"cache": "/models/hub", "free_bytes": …, "revisions": [{"model": "Qwen/Qwen3-4B", "revision": "1cfa…", "bytes": …, "own_bytes": …,
 "pinned": ["main"], "complete": true, "config": {…}, "modified": 1790000000.0}], "incomplete": [{"model": "…", "bytes": …, "files": 1}]}
{"model": "Qwen/Qwen3-4B", "revision": "1cfa…", "freed_bytes": 8060000000}     removed
{"model": "…", "error": "…"}                                                   not removed; the others are; exit status 1
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from embed_service.models.files import has_weights, list_folder
from embed_service.models.generation import is_weights
from embed_service.models.hub import quiet
from embed_service.models.revisions import Revisions

COMMIT = re.compile(r"[0-9a-f]{40}")
MINE = "give the cache to the user that the service runs as (in the stack QMD_UID)"


def main(remove: list[str], incomplete: list[str]) -> int:
    """Prints the content, or one object for each that is to go; 0, or 1 when one could not be removed."""
    quiet()
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    if not remove and not incomplete:
        _say(**content(cache))
        return 0
    results = [*remove_revisions(cache, remove), *remove_incomplete(cache, incomplete)]
    for result in results:
        _say(**result)
    return 1 if any("error" in result for result in results) else 0


def content(cache: Path) -> dict[str, Any]:
    """What lies there, of models alone: the hub's datasets and spaces in a cache that is shared are nobody's business here. Bytes.

    `own_bytes` of a revision are those that no other revision of its model shares: what removing it alone frees.
    """
    found = [entry for folder in _model_folders(cache) for entry in _revisions(cache, folder)]
    return {
        "cache": str(cache),
        "free_bytes": _free(cache),
        "revisions": sorted(found, key=lambda entry: (entry["model"], -entry["modified"])),
        "incomplete": [
            {"model": _id(folder), "bytes": sum(_stat(path).st_size for path in partial), "files": len(partial)}
            for folder in _model_folders(cache)
            if (partial := _partial(folder))
        ],
    }


def remove_revisions(cache: Path, names: Iterable[str]) -> list[dict[str, Any]]:
    """`names`: MODEL@COMMIT. The record forgets it first, so that a removal that is cut off leaves nothing that counts as complete."""
    from huggingface_hub import scan_cache_dir

    results: list[dict[str, Any]] = []
    for name in names:
        model, _, commit = name.partition("@")
        folder = cache / f"models--{model.replace('/', '--')}"
        if COMMIT.fullmatch(commit) is None or not (folder / "snapshots" / commit).is_dir():
            results.append({"model": model, "error": f"{name} is not in the cache at {cache} (MODEL@COMMIT, the commit in full)"})
            continue
        if any(_locked(cache, path) for path in _partial(folder)):
            results.append({"model": model, "error": f"{model} is being downloaded: wait for its end, or stop it"})
            continue
        scanned = scan_cache_dir(cache)
        # Of this repository alone: one that was renamed or duplicated at the hub has the same commits under another name.
        own = replace(scanned, repos=frozenset(repo for repo in scanned.repos if repo.repo_path == folder.resolve()))
        if commit not in {one.commit_hash for repo in own.repos for one in repo.revisions}:
            why = next((str(warning) for warning in scanned.warnings if folder.name in str(warning)), "it cannot be read")
            results.append({"model": model, "error": f"{model} is damaged in the cache ({why}): remove {folder} by hand"})
            continue
        before = _size(folder)
        try:
            Revisions(cache).forget(model, commit)
            own.delete_revisions(commit).execute()
        except OSError as error:
            results.append({"model": model, "error": f"{name} could not be removed ({error.strerror}): {MINE}."})
            continue
        if (folder / "snapshots" / commit).exists():  # the library logs a refusal and goes on
            results.append({"model": model, "error": f"{name} could not be removed whole: {MINE}."})
            continue
        results.append({"model": model, "revision": commit, "freed_bytes": before - _size(folder)})
    return results


def remove_incomplete(cache: Path, models: Iterable[str]) -> list[dict[str, Any]]:
    """What unfinished downloads of these left; files that a process is writing stay, and are told as an error."""
    results: list[dict[str, Any]] = []
    for model in models:
        folder = cache / f"models--{model.replace('/', '--')}"
        freed, error = 0, ""
        for path in _partial(folder):
            if _locked(cache, path):
                error = f"{model} is being downloaded: wait for its end, or stop it"
                continue
            try:
                size = path.stat().st_size
                path.unlink()
                freed += size
            except FileNotFoundError:
                continue
            except OSError as refused:
                error = f"{path.name} of {model} could not be removed ({refused.strerror}): {MINE}."
        if not error:
            _remove_empty(folder)
        results.append({"model": model, "freed_bytes": freed, **({"error": error} if error else {})})
    return results


def _revisions(cache: Path, folder: Path) -> list[dict[str, Any]]:
    revisions = Revisions(cache)
    model = _id(folder)
    blobs = {path.name: _blobs(path) for path in (folder / "snapshots").glob("*") if path.is_dir()}
    entries = []
    for commit, own in blobs.items():
        others = {blob for name, files in blobs.items() if name != commit for blob in files}
        snapshot = folder / "snapshots" / commit
        pinned = revisions.lookup(model, commit)
        names = [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()]
        entries.append(
            {
                "model": model,
                "revision": commit,
                "bytes": sum(found.st_size for found in own.values()),
                "own_bytes": sum(found.st_size for blob, found in own.items() if blob not in others),
                "pinned": revisions.names(model, commit),
                "complete": pinned.present_in(snapshot) if pinned else has_weights(list_folder(snapshot)) or any(map(is_weights, names)),
                "config": _config(snapshot),
                "modified": max((found.st_mtime for found in own.values()), default=_stat(snapshot).st_mtime),
            }
        )
    return entries


def _blobs(snapshot: Path) -> dict[Path, os.stat_result]:
    """The files that the snapshot's links lead to; a link without its file counts nothing."""
    found = {blob: _stat(blob) for blob in {link.resolve() for link in snapshot.rglob("*")}}
    return {blob: result for blob, result in found.items() if stat.S_ISREG(result.st_mode)}


def _config(snapshot: Path) -> dict[str, Any]:
    """config.json, from which qmdctl computes sizes; empty where there is none that can be read."""
    try:
        config = json.loads((snapshot / "config.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _model_folders(cache: Path) -> list[Path]:
    return sorted(path for path in cache.glob("models--*") if path.is_dir())


def _id(folder: Path) -> str:
    return folder.name.removeprefix("models--").replace("--", "/")


def _partial(folder: Path) -> list[Path]:
    return [path for path in (folder / "blobs").glob("*.incomplete") if path.is_file()]


def _locked(cache: Path, partial: Path) -> bool:
    """Whether a process is writing it: both huggingface_hub and download.py hold the blob's lock while they do."""
    from filelock import FileLock, Timeout

    lock = cache / ".locks" / partial.parent.parent.name / f"{partial.name.partition('.')[0]}.lock"
    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0, mode=0o666):
            return False
    except (Timeout, OSError):  # held, or another user's: not ours to judge
        return True


def _remove_empty(folder: Path) -> None:
    """A model of which only an unfinished download was there leaves no folder behind."""
    if folder.is_dir() and not any(path.is_file() or path.is_symlink() for path in folder.rglob("*")):
        shutil.rmtree(folder, ignore_errors=True)


def _size(folder: Path) -> int:
    return sum(_stat(path).st_size for path in (folder / "blobs").glob("*") if path.is_file())


def _stat(path: Path) -> os.stat_result:
    """Zeros for what was renamed or removed since it was listed, as at the end of a download."""
    try:
        return path.stat()
    except FileNotFoundError:
        return os.stat_result((0,) * 10)


def _free(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _say(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)  # noqa: T201
