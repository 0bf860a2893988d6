"""The weights that are on disk already: the Hugging Face cache that the seed's services filled."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from qmdctl.terminal import human_bytes


@dataclass(frozen=True)
class Cache:
    """A folder with `hub` in it. `models`: bytes of each that is asked for and there; `foreign`: parts that another user owns.

    `readable` is False where this user may not look.
    """

    folder: Path
    origin: str
    uid: int
    gid: int
    models: dict[str, int]
    foreign: tuple[Path, ...] = ()
    readable: bool = True

    @property
    def bytes(self) -> int:
        return sum(self.models.values())

    def sentence(self) -> str:
        models = ", ".join(f"{model} {human_bytes(size)}" for model, size in self.models.items()) or "none of these models"
        return f"{self.folder} ({self.origin}; user {self.uid}): {models if self.readable else 'this user may not look into it'}"

    def payload(self) -> dict[str, object]:
        return {"folder": str(self.folder), "origin": self.origin, "uid": self.uid, "gid": self.gid, "models": self.models}


def find_caches(candidates: Iterable[tuple[Path, str]], models: Iterable[str]) -> list[Cache]:
    """The folders among `candidates` (with why each is one) that are there, the one with the most of `models` first."""
    found: dict[Path, Cache] = {}
    wanted = list(dict.fromkeys(models))
    for folder, origin in candidates:
        folder = Path(os.path.realpath(folder))
        if folder in found:
            continue
        cache = look(folder, origin, wanted)
        if cache:
            found[folder] = cache
    return sorted(found.values(), key=lambda cache: -cache.bytes)


def look(folder: Path, origin: str, models: Iterable[str]) -> Cache | None:
    """None where there is no such folder, or no hub in it."""
    hub = folder / "hub"
    try:
        if not hub.is_dir():
            return None
        about = hub.stat()
    except PermissionError:
        try:
            about = folder.stat()
        except OSError:
            return Cache(folder, origin, -1, -1, {}, readable=False)
        return Cache(folder, origin, about.st_uid, about.st_gid, {}, readable=False)
    if not os.access(hub, os.R_OK | os.X_OK):
        return Cache(folder, origin, about.st_uid, about.st_gid, {}, readable=False)
    sizes = {model: size for model in models if (size := model_bytes(hub, model))}
    parts = [hub / ".locks", *(hub / repository(model) for model in models)]
    foreign = tuple(part for part in parts if part.exists() and part.stat().st_uid != about.st_uid)
    return Cache(folder, origin, about.st_uid, about.st_gid, sizes, foreign)


def repository(model: str) -> str:
    """The folder of a model in the hub's cache."""
    return f"models--{model.replace('/', '--')}"


def model_bytes(hub: Path, model: str) -> int:
    """What its blobs take; files of a download that was cut off do not count."""
    total = 0
    for above, _, files in os.walk(hub / repository(model) / "blobs"):
        total += sum((Path(above) / name).stat().st_size for name in files if not name.endswith(".incomplete"))
    return total


def cache_folder(environment: Mapping[str, str], home: Path | None) -> Path | None:
    """Where huggingface_hub keeps its cache in such an environment; None where that is no folder with `hub` in it, or not known.

    Source: huggingface_hub's documentation of HF_HOME, HF_HUB_CACHE and XDG_CACHE_HOME.
    """
    home = Path(environment["HOME"]) if environment.get("HOME") else home

    def expanded(text: str) -> Path:
        return home / text[2:] if text.startswith("~/") and home else Path(text)

    for key in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if environment.get(key):
            hub = expanded(environment[key])
            return hub.parent if hub.name == "hub" else None
    if environment.get("HF_HOME"):
        return expanded(environment["HF_HOME"])
    if environment.get("XDG_CACHE_HOME"):
        return expanded(environment["XDG_CACHE_HOME"]) / "huggingface"
    return home / ".cache/huggingface" if home else None
