"""The model's files on the disk: a folder as it is, a download that is complete already, or a download now.

Runs on the huggingface_hub of vLLM's image, 0.36 in the pinned one and 2.x in later ones.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import hub_errors
import phase
import record
from phase import StartError, say

TEXT_SUFFIXES = (".json", ".txt", ".model", ".jinja", ".tiktoken")
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
ORPHAN = re.compile(r"[0-9a-f]+\.[0-9a-f]{8}\.incomplete")
ORPHAN_SECONDS = 600
METADATA_TIMEOUT_SECONDS = 15.0
DISK_MARGIN = 1.05
LOG_SECONDS = 30.0
GIGABYTE = 1e9


@dataclass(frozen=True)
class RemoteFile:
    """`etag`: the name of its blob in the cache, the SHA-256 of a large file or git's SHA-1."""

    name: str
    size: int
    etag: str


def obtain(model: str, revision: str) -> Path:
    """The folder to serve. Raises StartError, with the cause and the fix."""
    if model.startswith(("/", "./", "../")) or Path(model).is_dir():
        folder = Path(model)
        if not (folder / "config.json").is_file():
            raise StartError(
                f"VLLM_MODEL={model} is not a folder with a config.json in the container", "mount the folder, or correct VLLM_MODEL"
            )
        return folder
    phase.write("resolving")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.file_download import repo_folder_name

    cache = Path(constants.HF_HUB_CACHE)
    try:
        storage = cache / repo_folder_name(repo_id=model, repo_type="model")
    except HFValidationError as error:
        raise hub_errors.sentence(error, model, revision, cache, has_token=False) from None
    recorded = record.lookup(cache, model, revision)
    if recorded is not None and record.complete(storage / "snapshots" / recorded[0], recorded[1]):
        return storage / "snapshots" / recorded[0]
    token = read_token()
    try:
        commit, files = ask(model, recorded[0] if recorded else revision, token)
        fetch(model, commit, files, storage, token)
    except StartError:
        raise
    except Exception as error:  # the library's, its HTTP client's (two of them), the file system's: one sentence for each
        cause = hub_errors.sentence(error, model, revision, cache, has_token=token is not None)
        left = left_by_others(storage, revision) if cause.offline else None
        if left is None:
            raise cause from None
        say(f"{cause}; serving {left} from the cache, unverified")
        return left
    try:
        record.write(cache, model, revision, commit, {file.name: file.size for file in files})
    except OSError as error:
        say(f"{model}: the complete download could not be recorded in {cache} ({error}); the next start asks the hub again")
    return storage / "snapshots" / commit


def read_token() -> str | None:
    """From HF_TOKEN_FILE (empty where none is configured); else what huggingface_hub finds by itself."""
    from huggingface_hub import get_token

    with contextlib.suppress(OSError, UnicodeDecodeError):
        text = Path(os.environ.get("HF_TOKEN_FILE", "")).read_text().strip()
        if text:
            return text
    with contextlib.suppress(OSError):
        return get_token()
    return None


def ask(model: str, revision: str, token: str | None) -> tuple[str, list[RemoteFile]]:
    """The commit and the wanted files. Raises what huggingface_hub raises."""
    from huggingface_hub import HfApi

    info = HfApi(token=token or False).model_info(model, revision=revision, files_metadata=True, timeout=METADATA_TIMEOUT_SECONDS)
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or []}
    names = choose(siblings)
    if not any(PurePosixPath(name).suffix in (".safetensors", ".bin") for name in names):
        raise StartError(f"VLLM_MODEL={model} has no weights that vLLM reads (*.safetensors, *.bin)", "set VLLM_MODEL to a model that has")
    return str(info.sha), [RemoteFile(name, siblings[name].size or 0, _etag(siblings[name])) for name in names]


def choose(names: Iterable[str]) -> list[str]:
    """Configuration, tokenizer and one set of weights, from the repository's root: safetensors, else pickles.

    Never the copies for other runtimes.
    """
    root = sorted(name for name in names if "/" not in name)
    safetensors = [name for name in root if name.endswith(".safetensors")]
    if "model.safetensors" in safetensors:
        weights = ["model.safetensors"]
    else:
        weights = [name for name in safetensors if SHARD.fullmatch(name)] or safetensors
    weights = weights or [name for name in root if name.endswith(".bin") and name.startswith("pytorch_model")]
    return sorted([*weights, *(name for name in root if PurePosixPath(name).suffix in TEXT_SUFFIXES)])


def fetch(model: str, commit: str, files: list[RemoteFile], storage: Path, token: str | None) -> None:
    """Download what is missing, telling how far it is. Raises StartError before the first byte where the disk is too small."""
    from huggingface_hub import snapshot_download

    remove_orphans(storage / "blobs", {file.etag for file in files})
    watch = Watch(commit, files, storage)
    missing = watch.total - watch.done()
    free = shutil.disk_usage(_existing(storage)).free
    if missing * DISK_MARGIN > free:
        raise StartError(
            f"VLLM_MODEL={model} needs {missing * DISK_MARGIN / GIGABYTE:.2f} GB more on the disk and {free / GIGABYTE:.2f} GB are free",
            "free some space, or set HF_CACHE_DIR to a folder on a larger disk",
        )
    if missing:
        say(f"downloading {model}: {missing / GIGABYTE:.2f} of {watch.total / GIGABYTE:.2f} GB are missing")
    with watch:
        snapshot_download(model, revision=commit, allow_patterns=[file.name for file in files], token=token or False, max_workers=4)


class Watch:
    """Writes the phase file once a second while a download runs. A context manager."""

    def __init__(self, commit: str, files: list[RemoteFile], storage: Path) -> None:
        self.total = sum(file.size for file in files)
        self._files = files
        self._snapshot, self._blobs = storage / "snapshots" / commit, storage / "blobs"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def done(self) -> int:
        """Bytes on the disk: of a file that is under way those of its largest partial blob."""
        return sum(min(file.size, self._bytes_of(file)) for file in self._files)

    def _bytes_of(self, file: RemoteFile) -> int:
        for path in (self._snapshot / file.name, self._blobs / file.etag):
            with contextlib.suppress(OSError):
                return path.stat().st_size
        sizes = [0]
        for path in self._blobs.glob(f"{file.etag}*.incomplete"):
            with contextlib.suppress(OSError):
                sizes.append(path.stat().st_size)
        return max(sizes)

    def _run(self) -> None:
        last, progressed, logged = -1, time.time(), time.monotonic()
        while True:
            done = self.done()
            if done != last:
                last, progressed = done, time.time()
            phase.write("downloading", done_bytes=done, total_bytes=self.total, progressed=progressed)
            if time.monotonic() - logged >= LOG_SECONDS:
                logged = time.monotonic()
                still = time.time() - progressed
                stalled = f", stalled for {still:.0f} s" if still >= LOG_SECONDS else ""
                say(f"downloading {done / GIGABYTE:.2f} of {self.total / GIGABYTE:.2f} GB{stalled}")
            if self._stop.wait(1.0):
                return

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()


def remove_orphans(blobs: Path, etags: set[str]) -> None:
    """Partial files of a process that ended: huggingface_hub 2 never takes them up again, and they are as large as the weights."""
    for path in blobs.glob("*.incomplete"):
        with contextlib.suppress(OSError):
            if ORPHAN.fullmatch(path.name) and path.name.split(".")[0] in etags and time.time() - path.stat().st_mtime > ORPHAN_SECONDS:
                path.unlink()


def left_by_others(storage: Path, revision: str) -> Path | None:
    """A snapshot that another program downloaded, if nothing of it is visibly missing."""
    ref = storage / "refs" / revision
    commit = ref.read_text().strip() if ref.is_file() else revision
    folder = storage / "snapshots" / commit
    names = [path.name for path in folder.glob("*") if path.exists()]
    index = folder / "model.safetensors.index.json"
    if "config.json" not in names or not any("tokenizer" in name for name in names):
        return None
    if index.is_file():
        wanted = set(record.shards(index))
        return folder if wanted <= set(names) else None
    return folder if any(name.endswith((".safetensors", ".bin")) for name in choose(names)) else None


def _etag(sibling: Any) -> str:
    lfs = getattr(sibling, "lfs", None)
    return str(lfs.sha256 if lfs else sibling.blob_id)


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder
