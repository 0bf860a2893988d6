"""Free space against what is still to come: images, and the weights that are not in the cache."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from qmdctl.checks.context import Context, Unavailable
from qmdctl.checks.finding import Finding
from qmdctl.errors import QmdError
from qmdctl.models.known import cached_config, is_folder, model_config
from qmdctl.models.size import weight_bytes
from qmdctl.terminal import human_bytes

# On the disk, unpacked. embed: measured, 5.6 GB, and its build keeps the downloads once more. vLLM: about 20 GB in public reports.
IMAGE_BYTES = {"embed": 9_000_000_000, "vllm": 22_000_000_000}
MARGIN = 1_000_000_000


def check(context: Context) -> Iterator[Finding]:
    if not context.local:
        raise Unavailable("the engine runs on another machine")
    root = Path(str(context.info.get("DockerRootDir", "")))
    needs: dict[Path, dict[str, int]] = {}
    images = {
        f"image of {name}": size for name, size in IMAGE_BYTES.items() if name in context.settings.services and name not in context.images
    }
    weights, unknown = missing_weights(context)
    cache = context.hub_cache
    needs[root] = {**images, **({} if cache else weights)}
    if cache:
        needs[cache] = weights
    for folder, parts in needs.items():
        there = _existing(folder)
        if there is None:
            yield Finding("disk", "skipped", f"{folder} cannot be looked at by this user")
            continue
        free, total = shutil.disk_usage(there).free, sum(parts.values())
        listed = ", ".join(f"{name} {human_bytes(size)}" for name, size in parts.items())
        if total and total + MARGIN > free:
            what = f"{folder}: {human_bytes(free)} are free, {human_bytes(total + MARGIN)} are needed"
            fix = "free some space (docker system df; docker image prune), or set HF_CACHE_DIR to a folder on a larger disk"
            yield Finding("disk", "failure", what, listed, fix)
        else:
            yield Finding("disk", "ok", f"{folder}: {human_bytes(free)} free, {human_bytes(total)} to come", listed)
    if unknown:
        yield Finding("disk", "warning", f"the size of {', '.join(unknown)} is not known", "", "qmdctl pull asks the hub and says it first")


def missing_weights(context: Context) -> tuple[dict[str, int], list[str]]:
    """({model: bytes to download}, models of unknown size). What lies in the cache of HF_CACHE_DIR does not count.

    A volume's content is not looked into: after the first start its models count again, which errs on the safe side only where
    the container has not run yet.
    """
    cache, ran = context.hub_cache, bool(context.containers)
    sizes: dict[str, int] = {}
    unknown: list[str] = []
    for model in dict.fromkeys(context.models().values()):
        if is_folder(model) or (cache and cached_config(model, cache)) or (ran and not cache):
            continue
        try:
            config = model_config(model)
            sizes[model] = int(config.get("download_bytes") or weight_bytes(config, str(config.get("dtype") or "bfloat16")))
        except QmdError:
            unknown.append(model)
    return sizes, unknown


def _existing(folder: Path) -> Path | None:
    try:
        while not folder.exists():
            folder = folder.parent
    except PermissionError:
        return None if folder == folder.parent else _existing(folder.parent)
    return folder
