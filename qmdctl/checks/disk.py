"""Free space against what is still to come: images, and the weights that are not in the cache."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from qmdctl.checks.context import Context
from qmdctl.checks.finding import Finding
from qmdctl.errors import QmdError
from qmdctl.models.known import cached_config, is_folder, model_config
from qmdctl.models.size import weight_bytes
from qmdctl.terminal import human_bytes

# On the disk, unpacked. embed: measured, 5.6 GB, and its build keeps the downloads once more. vLLM: about 20 GB in public reports; its
# image for CPUs is 1.3 GB compressed.
EMBED_BYTES = 9_000_000_000
VLLM_BYTES, VLLM_CPU_BYTES = 22_000_000_000, 5_000_000_000
MARGIN = 1_000_000_000


@dataclass
class Need:
    """What is to come to one file system. `perhaps`: what may be there already."""

    folder: Path
    free: int
    sure: dict[str, int] = field(default_factory=dict)
    perhaps: dict[str, int] = field(default_factory=dict)


def check(context: Context) -> Iterator[Finding]:
    root, cache = Path(str(context.info.get("DockerRootDir", ""))), context.hub_cache
    weights, unknown = missing_weights(context)
    needs: dict[int, Need] = {}
    if context.desktop or not _is_there(root):
        yield Finding("disk", "skipped", "the engine has a disk of its own, in its virtual machine")
    elif need := _need(needs, root):
        need.sure |= missing_images(context)
    else:
        yield Finding("disk", "skipped", f"{root} cannot be looked at by this user")
    place = _need(needs, cache) if cache else next(iter(needs.values()), None)
    if place:
        (place.perhaps if context.weights_may_be_here else place.sure).update(weights)
    for need in needs.values():
        yield _finding(need)
    if unknown:
        yield Finding("disk", "warning", f"the size of {', '.join(unknown)} is not known", "", "qmdctl pull asks the hub and says it first")


def _finding(need: Need) -> Finding:
    sure, perhaps = sum(need.sure.values()), sum(need.perhaps.values())
    maybe = {f"{name} (unless it is here already)": size for name, size in need.perhaps.items()}
    listed = ", ".join(f"{name} {human_bytes(size)}" for name, size in {**need.sure, **maybe}.items())
    if not sure + perhaps or sure + perhaps + MARGIN <= need.free:
        return Finding("disk", "ok", f"{need.folder}: {human_bytes(need.free)} free, {human_bytes(sure + perhaps)} to come", listed)
    too_small = bool(sure) and sure + MARGIN > need.free
    needed = human_bytes((sure if too_small else sure + perhaps) + MARGIN)
    what = f"{need.folder}: {human_bytes(need.free)} are free, {needed} {'are' if too_small else 'may be'} needed"
    fix = "free some space (docker system df; docker image prune), or set HF_CACHE_DIR to a folder on a larger disk"
    return Finding("disk", "failure" if too_small else "warning", what, listed, fix)


def missing_images(context: Context) -> dict[str, int]:
    """{image: bytes} of those that are not here."""
    sizes = {"embed": EMBED_BYTES, "vllm": VLLM_CPU_BYTES if context.settings.cpu else VLLM_BYTES}
    return {f"image of {name}": size for name, size in sizes.items() if name in context.services and name not in context.images}


def missing_weights(context: Context) -> tuple[dict[str, int], list[str]]:
    """({model: bytes to download}, models of unknown size). What lies in the cache of HF_CACHE_DIR does not count."""
    cache = context.hub_cache
    sizes: dict[str, int] = {}
    unknown: list[str] = []
    for model in dict.fromkeys(context.models().values()):
        if is_folder(model) or (cache and cached_config(model, cache)):
            continue
        try:
            config = model_config(model)
            sizes[model] = int(config.get("download_bytes") or weight_bytes(config, str(config.get("dtype") or "bfloat16")))
        except QmdError:
            unknown.append(model)
    return sizes, [] if context.weights_may_be_here else unknown


def _need(needs: dict[int, Need], folder: Path) -> Need | None:
    """The entry of the folder's file system: two folders on one disk share its space. None where this user may not look."""
    there = _existing(folder)
    if there is None:
        return None
    return needs.setdefault(there.stat().st_dev, Need(folder, shutil.disk_usage(there).free))


def _is_there(folder: Path) -> bool:
    try:
        folder.stat()
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def _existing(folder: Path) -> Path | None:
    try:
        while not folder.exists():
            folder = folder.parent
    except PermissionError:
        return None if folder == folder.parent else _existing(folder.parent)
    return folder
