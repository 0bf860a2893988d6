"""Whether models and compile caches outlive a container, and whether HF_CACHE_DIR is there and open to the containers' user."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from qmdctl.checks.container_user import WRITE_FOLDER, fix, may, why_not
from qmdctl.checks.context import Context, Unavailable
from qmdctl.checks.finding import Finding, Level
from qmdctl.models.known import cached_config, is_folder

FOLDERS = {"/models": "downloaded models", "/cache": "compile caches"}


def check(context: Context) -> Iterator[Finding]:
    cache = context.hub_cache
    problem = _folder(context, cache.parent, cache) if cache and not context.remote else None
    if problem:
        yield problem
    if not context.containers:
        raise Unavailable("no container yet")
    fine = not problem
    for service, container in context.containers.items():
        if service not in ("embed", "vllm"):
            continue
        mounts = {mount["Destination"] for mount in context.engine.client.api.inspect_container(container.id).get("Mounts", [])}
        for folder, what in FOLDERS.items():
            if folder not in mounts:
                fine = False
                why = f"{what} are kept inside the container and vanish with it"
                yield Finding(
                    "cache_volume", "warning", f"{service} has no volume at {folder}", why, "mount it as compose.yaml does, then qmdctl up"
                )
    if fine:
        yield Finding("cache_volume", "ok", "models and compile caches lie in volumes")


def _folder(context: Context, folder: Path, hub: Path) -> Finding | None:
    """What is wrong with HF_CACHE_DIR. A failure only where something has to be written: a complete cache may be another user's."""
    try:
        about = _stat(hub) or _stat(folder)
    except PermissionError:
        return Finding("cache_volume", "warning", f"HF_CACHE_DIR={folder} cannot be looked at by this user")
    if about is None:
        if context.settings["QMD_UID"] == "0":
            return None  # Docker makes it, as root's
        level: Level = "warning" if context.desktop else "failure"
        what = f"HF_CACHE_DIR={folder} does not exist"
        return Finding(
            "cache_volume", level, what, "Docker would make it as root's, and the containers run as another", f"mkdir -p {folder}", True
        )
    allowed = may(context, about, WRITE_FOLDER)
    if allowed:
        return None
    models = [model for model in context.models().values() if not is_folder(model)]
    complete = context.weights_may_be_here or all(cached_config(model, hub) for model in models)
    level = "warning" if allowed is None or complete else "failure"
    what = f"HF_CACHE_DIR: the containers {'may not be able to' if allowed is None else 'cannot'} write to {folder}"
    return Finding("cache_volume", level, what, why_not(context, about), fix(context, about, folder), True)


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
