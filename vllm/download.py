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
INDEX, PICKLED_INDEX = "model.safetensors.index.json", "pytorch_model.bin.index.json"
SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
VOCABULARY = re.compile(r"tokenizer\.json|tekken\.json|vocab\..+|.+\.(model|tiktoken)")
ORPHAN = re.compile(r"([0-9a-f]+)\.[0-9a-f]{8}\.incomplete")
PULLED = ".embed-service.incomplete"  # of `qmdctl pull`, which alone goes on with it
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


def obtain(model: str, revision: str, *, code: bool = False) -> Path:
    """The folder to serve; `code`: with the repository's own. Raises StartError, with the cause and the fix."""
    if model.startswith(("/", "./", "../")) or Path(model).is_dir():
        folder = Path(model)
        if not (folder / "config.json").is_file():
            raise StartError(
                f"VLLM_MODEL={model} is not a folder with a config.json in the container", "mount the folder, or correct VLLM_MODEL"
            )
        return folder
    if phase.read()["phase"] != "downloading":  # one that the network broke off stays one
        phase.write("resolving")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # Xet hangs without an error when the network breaks, and begins anew (huggingface/xet-core issues 850, 883, 898).
    os.environ["HF_HUB_DISABLE_XET"] = os.environ.get("HF_HUB_DISABLE_XET") or "1"
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.file_download import repo_folder_name

    cache = Path(constants.HF_HUB_CACHE)
    try:
        storage = cache / repo_folder_name(repo_id=model, repo_type="model")
    except HFValidationError as error:
        raise hub_errors.sentence(error, model, revision, cache, has_token=False) from None
    recorded = record.lookup(cache, model, revision)
    stored = storage / "snapshots" / recorded[0] if recorded else None
    if recorded is not None and stored is not None and not record.complete(stored, recorded[1]):
        stored = None
    if stored is not None and suffices(stored, code=code):
        return stored
    token = read_token()
    try:
        commit, files = ask(model, recorded[0] if recorded else revision, token, code=code)
        fetch(model, commit, files, storage, token)
    except StartError:
        raise
    except Exception as error:  # the library's, its HTTP client's (two of them), the file system's: one sentence for each
        cause = hub_errors.sentence(error, model, revision, cache, has_token=token is not None)
        if not cause.offline or phase.read()["phase"] == "downloading":  # then what lies there is known to be incomplete
            raise cause from None
        left = stored if stored is not None and has_weights(stored) else left_by_others(storage, revision)
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


def ask(model: str, revision: str, token: str | None, *, code: bool) -> tuple[str, list[RemoteFile]]:
    """The commit and the wanted files. Raises what huggingface_hub raises."""
    from huggingface_hub import HfApi, hf_hub_download

    info = HfApi(token=token or False).model_info(model, revision=revision, files_metadata=True, timeout=METADATA_TIMEOUT_SECONDS)
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or []}
    shards = record.shards(Path(hf_hub_download(model, INDEX, revision=info.sha, token=token or False))) if INDEX in siblings else []
    names = choose(siblings, shards, code=code)
    if not any(PurePosixPath(name).suffix in (".safetensors", ".bin") for name in names):
        raise StartError(f"VLLM_MODEL={model} has no weights that vLLM reads (*.safetensors, *.bin)", "set VLLM_MODEL to a model that has")
    return str(info.sha), [RemoteFile(name, siblings[name].size or 0, _etag(siblings[name])) for name in names]


def choose(names: Iterable[str], shards: Iterable[str] = (), *, code: bool = False) -> list[str]:
    """Configuration, tokenizer and one set of weights, from the repository's root: safetensors, else pickles.

    `shards`: the weights that the index names; vLLM reads those and no others. `code`: Python files too. Never the copies for other
    runtimes. The embed service downloads ahead by the same rule (embed_service/models/generation.py).
    """
    root = sorted(name for name in names if "/" not in name)
    safetensors = [name for name in root if name.endswith(".safetensors")]
    indexed = sorted(set(shards))
    if indexed and set(indexed) <= set(safetensors):
        weights = indexed
    elif "model.safetensors" in safetensors:
        weights = ["model.safetensors"]
    else:
        weights = [name for name in safetensors if SHARD.fullmatch(name)] or safetensors
    weights = weights or [name for name in root if name.endswith(".bin") and name.startswith("pytorch_model")]
    suffixes = (*TEXT_SUFFIXES, ".py") if code else TEXT_SUFFIXES
    return sorted([*weights, *(name for name in root if PurePosixPath(name).suffix in suffixes)])


def suffices(folder: Path, *, code: bool) -> bool:
    """Whether a complete download is all that vLLM needs: it may have been made for another use, or without the code."""
    names = [path.name for path in folder.glob("*") if path.exists()]
    has_code = not code or any(name.endswith(".py") for name in names)
    return has_code and any(VOCABULARY.fullmatch(name) for name in names) and has_weights(folder)


def has_weights(folder: Path) -> bool:
    """Every shard that the index names; without an index any weights."""
    names = {path.name for path in folder.glob("*") if path.exists()}
    safetensors = any(name.endswith(".safetensors") for name in names)
    shards = record.shards(folder / (INDEX if safetensors else PICKLED_INDEX))
    if shards and "model.safetensors" not in names:
        return set(shards) <= names
    return safetensors or any(name.endswith(".bin") for name in choose(names))


def fetch(model: str, commit: str, files: list[RemoteFile], storage: Path, token: str | None) -> None:
    """Download what is missing, telling how far it is. Raises StartError before the first byte where the disk is too small."""
    from huggingface_hub import snapshot_download

    remove_orphans(storage)
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
    lost = [file.name for file in files if not (storage / "snapshots" / commit / file.name).is_file()]
    if lost:  # huggingface_hub 0.36 hands out an incomplete folder when it cannot ask the hub
        raise ConnectionError(f"{lost[0]} did not arrive")


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
            if not path.name.endswith(PULLED):
                with contextlib.suppress(OSError):
                    sizes.append(path.stat().st_size)
        return max(sizes)

    def _run(self) -> None:
        before = phase.read()  # of a download that broke off: its stall goes on
        last, progressed = (before["done_bytes"], before["progressed"]) if before["phase"] == "downloading" else (-1, 0.0)
        logged, stopped = time.monotonic(), False
        while True:
            done = self.done()
            if done > last:
                progressed = time.time()
            last = done
            phase.write("downloading", done_bytes=done, total_bytes=self.total, progressed=progressed)
            if time.monotonic() - logged >= LOG_SECONDS:
                logged = time.monotonic()
                still = time.time() - progressed
                stalled = f", stalled for {still:.0f} s" if still >= LOG_SECONDS else ""
                say(f"downloading {done / GIGABYTE:.2f} of {self.total / GIGABYTE:.2f} GB{stalled}")
            if stopped:
                return
            stopped = self._stop.wait(1.0)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()


def remove_orphans(storage: Path) -> None:
    """Partial files of a process that ended: huggingface_hub 2 never takes them up again, and they are as large as the weights.

    Who writes one holds its blob's lock, so one whose lock is free is an orphan.
    """
    from filelock import FileLock

    locks = storage.parent / ".locks" / storage.name
    for path in (storage / "blobs").glob("*.incomplete"):
        if orphan := ORPHAN.fullmatch(path.name):
            with contextlib.suppress(OSError, NotImplementedError):  # filelock's Timeout is an OSError: somebody downloads it now
                locks.mkdir(parents=True, exist_ok=True)
                with FileLock(locks / f"{orphan[1]}.lock", timeout=0, mode=0o666):
                    path.unlink()


def left_by_others(storage: Path, revision: str) -> Path | None:
    """A snapshot that another program downloaded, if nothing of it is visibly missing."""
    ref = storage / "refs" / revision
    commit = ref.read_text().strip() if ref.is_file() else revision
    folder = storage / "snapshots" / commit
    return folder if (folder / "config.json").is_file() and suffices(folder, code=False) else None


def _etag(sibling: Any) -> str:
    lfs = getattr(sibling, "lfs", None)
    return str(lfs.sha256 if lfs else sibling.blob_id)


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder
