"""From a model id or folder to the files on the disk, at a known revision.

Runs in the engine process before torch is needed; huggingface_hub is imported when a hub id asks for it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from embed_service.errors import ModelError
from embed_service.models import generation, hub_errors
from embed_service.models.download import Download, RemoteFile
from embed_service.models.files import INDEX, choose, has_weights, lacks_modules, list_folder, missing_from
from embed_service.models.hub_errors import Wanted, translate, want
from embed_service.models.revisions import Pinned, Revisions
from embed_service.settings import Settings

log = logging.getLogger(__name__)

METADATA_TIMEOUT_SECONDS = 15.0
DISK_MARGIN = 1.05
SMALL_JSON_BYTES = 1 << 20
SAMPLES, SAMPLE_BYTES = 16, 4096

_running: list[Download] = []  # both models are downloaded at once, and must fit together
_running_lock = threading.Lock()


@dataclass(frozen=True)
class ResolvedRepository:
    """`path` is the folder with the files; `revision` a commit of the hub (40 hex digits), or "local-" and 12 hex digits."""

    id: str
    path: str
    revision: str


@dataclass(frozen=True)
class Listing:
    """What the hub says of one revision: its commit and the files that serving takes."""

    commit: str
    files: list[RemoteFile]

    @property
    def pinned(self) -> Pinned:
        return Pinned(self.commit, {file.name: file.size for file in self.files})


def is_folder(model_id: str) -> bool:
    """Whether a setting means a folder: it looks like a path, or is one."""
    return model_id in (".", "..") or model_id.startswith(("/", "./", "../", "~")) or Path(model_id).is_dir()


@dataclass(frozen=True)
class Located:
    """A model that is to be had: on the disk already, or as the hub lists it."""

    wanted: Wanted | None
    found: ResolvedRepository | Listing


def locate(model_id: str, revision: str | None, settings: Settings) -> Located:
    """Whether the model is to be had, before any of its weights is downloaded.

    A revision that was downloaded before needs no network, and stays at the commit it then had. Raises ModelError.
    """
    if is_folder(model_id):
        return Located(None, resolve_folder(model_id, settings))
    quiet()
    wanted = want(model_id, revision, settings)
    return Located(wanted, find(wanted))


def download(located: Located, progress: Callable[[int, int], None]) -> ResolvedRepository:
    """The model's files on the disk, downloaded where they are missing.

    `progress(done, total)` is called with bytes while a download moves, from several threads but never two at once; while one stalls it is
    not called. Raises ModelError.
    """
    wanted, found = located.wanted, located.found
    if wanted is None or isinstance(found, ResolvedRepository):
        assert isinstance(found, ResolvedRepository)
        return found
    path = fetch(wanted, found, progress)
    revisions = Revisions(wanted.cache)
    try:
        revisions.write(wanted.id, wanted.revision, found.pinned)
    except OSError as error:
        log.warning("%s: its revision could not be recorded in %s: %s", wanted.label, revisions.path, error)
    return ResolvedRepository(wanted.id, str(path), found.commit)


def find(wanted: Wanted) -> ResolvedRepository | Listing:
    """The model in the cache, without the network where it was downloaded before; else what the hub says of it. Raises ModelError."""
    pinned = Revisions(wanted.cache).lookup(wanted.id, wanted.revision)
    if pinned is not None and _suffices(wanted, pinned):
        return ResolvedRepository(wanted.id, str(snapshot_path(wanted, pinned.commit)), pinned.commit)
    try:
        return _ask(wanted, pinned)
    except ModelError as error:
        local = _local_snapshot(wanted, pinned) if error.code == "offline" else None
        if local is None:
            raise
        log.warning("%s: served unverified from the cache (%s): %s", wanted.label, local.revision, error.message)
        return local


def find_newest(wanted: Wanted) -> ResolvedRepository | Listing:
    """What the hub has at the revision by now, whatever was pinned before; in the cache where that commit is there. Raises ModelError."""
    listing = _ask(wanted, None)
    pinned = Revisions(wanted.cache).lookup(wanted.id, listing.commit)
    if pinned is not None and _suffices(wanted, pinned):
        return ResolvedRepository(wanted.id, str(snapshot_path(wanted, pinned.commit)), pinned.commit)
    return listing


def fetch(wanted: Wanted, listing: Listing, progress: Callable[[int, int], None]) -> Path:
    """The listing's files into the cache; the snapshot folder. Raises ModelError: before the first byte where the disk is too small."""
    download = Download(wanted.id, listing.commit, listing.files, wanted.cache, wanted.token, progress)
    with _running_lock:
        check_disk(download.missing_bytes, wanted.cache, wanted.label, reserved=sum(other.missing_bytes for other in _running))
        _running.append(download)
    try:
        return download.run()
    except Exception as error:
        raise translate(error, wanted) from None
    finally:
        _running.remove(download)


def resolve_folder(model_id: str, settings: Settings) -> ResolvedRepository:
    """A folder as it is. Raises ModelError where it is missing or has no safetensors."""
    setting = "EMBED_MODEL" if model_id == settings.embed_model else "RERANK_MODEL"
    folder = Path(model_id).expanduser().absolute()
    if not folder.is_dir():
        raise ModelError("not_found", f"{setting}={model_id} is not a folder on this machine: correct {setting}, or mount the folder.")
    try:
        names = choose(list_folder(folder))
        if not has_weights(names):
            raise hub_errors.no_safetensors(f"{setting}={model_id}", setting)
        return ResolvedRepository(model_id, str(folder), "local-" + _hash_folder(folder, names))
    except OSError as error:
        raise ModelError("bad_files", f"{setting}={model_id} cannot be read ({error.strerror}): make it readable for this user.") from None


def _ask(wanted: Wanted, pinned: Pinned | None) -> Listing:
    """The hub's answer for a revision; for one pinned before, for the commit it was pinned to."""
    from huggingface_hub import HfApi, constants

    if constants.is_offline_mode():
        raise hub_errors.offline_forbidden(wanted)
    try:
        info = HfApi(token=wanted.token or False).model_info(
            wanted.id, revision=pinned.commit if pinned else wanted.revision, files_metadata=True, timeout=METADATA_TIMEOUT_SECONDS
        )
        siblings = {s.rfilename: s for s in info.siblings or []}
        names = _choose_for_generation(wanted, str(info.sha), set(siblings)) if wanted.for_generation else choose(siblings)
    except Exception as error:
        raise translate(error, wanted) from None
    if wanted.for_generation and not any(map(generation.is_weights, names)):
        raise hub_errors.no_weights(wanted)
    if not wanted.for_generation and not has_weights(names):
        raise hub_errors.no_safetensors(wanted.label, wanted.setting)
    files = [RemoteFile(n, siblings[n].size or 0, lfs.sha256 if (lfs := siblings[n].lfs) else siblings[n].blob_id) for n in names]
    return Listing(str(info.sha), files)


def _choose_for_generation(wanted: Wanted, commit: str, names: set[str]) -> list[str]:
    """The index is fetched first: vLLM reads the shards that it names. Raises what huggingface_hub raises."""
    from huggingface_hub import hf_hub_download

    index = hf_hub_download(wanted.id, INDEX, revision=commit, token=wanted.token or False) if INDEX in names else None
    return generation.choose(names, generation.shards_of(Path(index)) if index else [], code=generation.runs_code())


def _suffices(wanted: Wanted, pinned: Pinned) -> bool:
    """Whether what was downloaded is all there, and was downloaded for the same use: the other one takes other files."""
    folder = snapshot_path(wanted, pinned.commit)
    if not pinned.present_in(folder):
        return False
    if wanted.for_generation:
        return generation.suffices(folder, code=generation.runs_code())
    return has_weights(pinned.files) and not lacks_modules(folder, pinned.files)


def snapshot_path(wanted: Wanted, commit: str) -> Path:
    """Where huggingface_hub's cache keeps the files of a commit."""
    from huggingface_hub.file_download import repo_folder_name

    return wanted.cache / repo_folder_name(repo_id=wanted.id, repo_type="model") / "snapshots" / commit


def missing_bytes(wanted: Wanted, listing: Listing) -> int:
    """Bytes of the listing that are not on the disk yet; of a download that stopped, the rest."""
    return Download(wanted.id, listing.commit, listing.files, wanted.cache, None, lambda done, total: None).missing_bytes


def check_disk(missing_bytes: int, cache: Path, label: str, reserved: int = 0) -> None:
    """Raises ModelError(no_disk) where the cache's disk cannot take the missing bytes and 5 %. `label` says whose they are.

    `reserved` bytes of the free ones belong to downloads that run already.
    """
    folder = cache.absolute()
    while not folder.exists():
        folder = folder.parent
    free, needed = max(0, shutil.disk_usage(folder).free - reserved), int(missing_bytes * DISK_MARGIN)
    if needed > free:
        raise hub_errors.no_disk(needed, free, cache, label)


def quiet() -> None:
    """No telemetry and no bars (huggingface_hub reads these when it is imported), and no signed addresses in the log."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ["HF_HUB_DISABLE_XET"] = os.environ.get("HF_HUB_DISABLE_XET") or "1"  # it hangs without an error when the network breaks
    for name in ("httpx2", "httpcore2"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _local_snapshot(wanted: Wanted, pinned: Pinned | None) -> ResolvedRepository | None:
    """A snapshot that another program left in the cache, if nothing of it is visibly missing."""
    if pinned is not None:
        return None  # its file list is known, and not all of them are there
    commit = wanted.revision
    ref = snapshot_path(wanted, "").parent / "refs" / wanted.revision
    if ref.is_file():
        commit = ref.read_text().strip()
    folder = snapshot_path(wanted, commit)
    if not folder.is_dir() or missing_from(folder):
        return None
    return ResolvedRepository(wanted.id, str(folder), commit)


def _hash_folder(folder: Path, names: list[str]) -> str:
    """12 hex digits over names, sizes, small JSON files, the headers of the safetensors and samples of their values."""
    digest = hashlib.sha256()
    for name in names:
        path = folder / name
        size = path.stat().st_size
        digest.update(f"{name}\0{size}\0".encode())
        with path.open("rb") as file:
            if path.suffix == ".safetensors":
                header = min(int.from_bytes(file.read(8), "little"), SMALL_JSON_BYTES)
                digest.update(file.read(header))
                for n in range(SAMPLES):
                    file.seek(max(0, size - SAMPLE_BYTES) * n // (SAMPLES - 1))
                    digest.update(file.read(SAMPLE_BYTES))
            elif path.suffix == ".json" and size <= SMALL_JSON_BYTES:
                digest.update(file.read())
    return digest.hexdigest()[:12]
