"""Files of one commit of a hub repository into huggingface_hub's cache, resumed where they stopped.

huggingface_hub 2 begins a file anew after its process ended; for gigabytes of weights that is too much to lose. So the blobs are
streamed here, into the place where huggingface_hub looks for them (`blobs/<etag>`, under its own lock), and it makes the snapshot's links.
The etag is the file's SHA-256 (LFS) or its git SHA-1, and is verified.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from embed_service.errors import ModelError

PARALLEL_FILES = 4
GIVE_UP_SECONDS = 300.0  # without one new byte, over all reconnections
REPORT_SECONDS = 0.2
RETRIED = frozenset({408, 416, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class RemoteFile:
    """`size` in bytes; `etag`: SHA-256 of an LFS file, git's SHA-1 of another, None where the hub does not tell."""

    name: str
    size: int
    etag: str | None


class Download:
    """One repository's files. `progress(done, total)` gets bytes, of all files, those on the disk already included."""

    def __init__(
        self, model_id: str, commit: str, files: Sequence[RemoteFile], cache: Path, token: str | None, progress: Callable[[int, int], None]
    ) -> None:
        from huggingface_hub.file_download import repo_folder_name

        folder = repo_folder_name(repo_id=model_id, repo_type="model")
        self.snapshot = cache / folder / "snapshots" / commit
        self._blobs = cache / folder / "blobs"
        self._locks = cache / ".locks" / folder
        self._id, self._commit, self._files, self._token, self._progress = model_id, commit, files, token, progress
        self._done = {file.name: self._on_disk(file) for file in files}
        self._total = sum(file.size for file in files)
        self._lock = threading.Lock()
        self._reported = 0.0
        self._stop = threading.Event()

    @property
    def missing_bytes(self) -> int:
        return self._total - sum(self._done.values())

    def run(self) -> Path:
        """Download what is missing; returns the snapshot folder. Raises what huggingface_hub and the file system raise."""
        self._report(force=True)
        with ThreadPoolExecutor(PARALLEL_FILES, thread_name_prefix="download") as pool:
            largest_first = sorted(self._files, key=lambda file: -file.size)
            futures = [pool.submit(self._fetch, file) for file in largest_first]
            try:
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                failed = [error for future in done if (error := future.exception())]
            finally:
                self._stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
        if failed:
            raise failed[0]
        self._report(force=True)
        return self.snapshot

    def _on_disk(self, file: RemoteFile) -> int:
        for path in (self.snapshot / file.name, self._blobs / str(file.etag), self._partial(file)):
            with contextlib.suppress(OSError):
                return min(path.stat().st_size, file.size)
        return 0

    def _partial(self, file: RemoteFile) -> Path:
        return self._blobs / f"{file.etag}.embed-service.incomplete"

    def _fetch(self, file: RemoteFile) -> None:
        from huggingface_hub import hf_hub_download

        link = self.snapshot / file.name
        if link.exists() and link.stat().st_size != file.size:
            link.resolve().unlink()  # damaged: neither the link nor its blob may be taken for the file
            link.unlink(missing_ok=True)
        if not link.exists():
            if file.etag is not None:
                self._fetch_blob(file)
            hf_hub_download(self._id, file.name, revision=self._commit, token=self._token or False)
        self._set(file, file.size)

    def _fetch_blob(self, file: RemoteFile) -> None:
        from filelock import FileLock, Timeout

        blob, partial = self._blobs / str(file.etag), self._partial(file)
        for folder in (self._blobs, self._locks):
            folder.mkdir(parents=True, exist_ok=True)
        while not self._stop.is_set():
            try:
                with FileLock(self._locks / f"{file.etag}.lock", timeout=1, mode=0o666):
                    if blob.exists():
                        return
                    self._stream(file, partial)
                    if _digest(partial, str(file.etag)) != file.etag:
                        partial.unlink()
                        raise self._damaged(file, "arrived damaged (its checksum differs)")
                    os.replace(partial, blob)
                    return
            except Timeout:  # another process downloads it: show its progress as ours
                self._set(file, self._on_disk(file))

    def _stream(self, file: RemoteFile, partial: Path) -> None:
        import httpx2
        from huggingface_hub.errors import HfHubHTTPError

        last_byte, pause = time.monotonic(), 0.5
        while not self._stop.is_set():
            start = partial.stat().st_size if partial.exists() else 0
            if start == file.size and partial.exists():
                return
            if start > file.size:
                partial.unlink()
                start = 0
            try:
                self._stream_once(file, partial, start)
                error: Exception | None = None
            except httpx2.TransportError as broken:
                error = broken
            except HfHubHTTPError as refused:
                if refused.response.status_code not in RETRIED:
                    raise
                if refused.response.status_code == 416:
                    partial.unlink(missing_ok=True)
                error = refused
            now = time.monotonic()
            if partial.exists() and partial.stat().st_size > start:
                last_byte, pause = now, 0.5
            elif now - last_byte > GIVE_UP_SECONDS:
                raise error or self._damaged(file, "is shorter than the hub says")
            if error is not None or partial.stat().st_size == start:
                self._stop.wait(pause)
                pause = min(2 * pause, 8.0)
        raise InterruptedError("another file failed")

    def _stream_once(self, file: RemoteFile, partial: Path, start: int) -> None:
        from huggingface_hub import constants, get_session, hf_hub_url, hf_raise_for_status

        headers = {"Accept-Encoding": "identity"}  # a Range counts bytes as stored
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        if start:
            headers["Range"] = f"bytes={start}-"
        url = hf_hub_url(self._id, file.name, revision=self._commit)
        with get_session().stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
            hf_raise_for_status(response)
            if response.status_code != 206:  # the Range was ignored
                start = 0
            with partial.open("ab" if start else "wb") as out:
                for chunk in response.iter_bytes():
                    if self._stop.is_set():
                        return
                    out.write(chunk)
                    start += len(chunk)
                    if start > file.size:
                        raise self._damaged(file, "is longer than the hub says")
                    self._set(file, start)

    def _damaged(self, file: RemoteFile, what: str) -> ModelError:
        fix = "start again, and if it stays so look for a proxy that changes downloads"
        return ModelError("bad_files", f"{file.name} of {self._id} {what}: {fix}.", retryable=True)

    def _set(self, file: RemoteFile, done: int) -> None:
        with self._lock:
            self._done[file.name] = done
        self._report()

    def _report(self, force: bool = False) -> None:
        with self._lock:
            now = time.monotonic()
            if force or now - self._reported >= REPORT_SECONDS:
                self._reported = now
                self._progress(sum(self._done.values()), self._total)


def _digest(path: Path, etag: str) -> str:
    """SHA-256 in hex where `etag` is one; else git's SHA-1 of a blob (`blob <size>\\0` and the content)."""
    with path.open("rb") as file:
        if len(etag) == 64:
            return hashlib.file_digest(file, "sha256").hexdigest()
        start = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
        return hashlib.file_digest(file, lambda: start).hexdigest()
