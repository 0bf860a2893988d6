"""A FAKE of the Hugging Face hub: folders served as repositories, on loopback, with faults on demand.

It speaks the part of the hub's API that huggingface_hub 2 uses for models (model info, HEAD and GET of `resolve`, Range), with the
headers that the client reads. Large files are redirected to another origin ("the CDN": this server under its other name), which must not
be sent the token. It is no hub: no git, no Xet.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import unquote, urlsplit

API = re.compile(r"/api/models/(?P<id>[^/]+/[^/]+)(?:/(?P<what>revision|tree)/(?P<revision>[^/]+))?")
RESOLVE = re.compile(r"/(?P<id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
CDN = "/cdn"  # before the path of RESOLVE
LFS_BYTES = 1_000_000
WRITE_BYTES = 16_384


@dataclass(frozen=True)
class Logged:
    """One request. `sent` counts the body's bytes, also of an answer that was cut."""

    method: str
    path: str
    range: str | None
    status: int
    sent: int


@dataclass(frozen=True)
class Blob:
    path: Path
    size: int
    sha1: str  # git's
    sha256: str | None  # of an LFS file

    @property
    def etag(self) -> str:
        return self.sha256 or self.sha1

    @classmethod
    def of(cls, path: Path) -> Blob:
        content = path.read_bytes()
        git = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
        large = len(content) >= LFS_BYTES or path.suffix == ".safetensors"
        return cls(path, len(content), git, hashlib.sha256(content).hexdigest() if large else None)


@dataclass
class Repository:
    gated: bool = False
    private: bool = False
    branches: dict[str, str] = field(default_factory=dict)  # name → commit
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)  # commit → files


class FakeHub:
    """A context manager. `environment` is what a client of it needs; the attributes are the faults, changeable at any time.

    `address`: where it listens; for containers that of the engine's bridge.
    """

    def __init__(self, address: str = "127.0.0.1") -> None:
        self.repositories: dict[str, Repository] = {}
        self.tokens: dict[str, set[str]] = {}  # token → gated or private ids that it may read
        self.bytes_per_second: float | None = None  # of each file's answer
        self.cut_after: int | None = None  # the next GET of a file that reaches so many bytes is cut there, once
        self.break_after: int | None = None  # the network breaks when a GET of a file reaches so many bytes, until `mend`
        self.broken = False
        self.corrupt: int = 0  # so many GETs of LFS files get one wrong byte
        self.ignore_ranges = False
        self.failures: int = 0  # so many GETs of files are answered with 503
        self.log: list[Logged] = []
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._server = ThreadingHTTPServer((address, 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self.url = f"http://{address}:{self._server.server_port}"

    def environment(self, home: Path) -> dict[str, str]:
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}

    def add(self, model_id: str, folder: Path, branch: str = "main", gated: bool = False, private: bool = False) -> str:
        """A new commit with the files of `folder`; `branch` moves to it. Returns the commit."""
        files = {p.relative_to(folder).as_posix(): Blob.of(p) for p in sorted(folder.rglob("*")) if p.is_file()}
        listing = "".join(f"{name} {blob.sha1}\n" for name, blob in files.items())
        commit = hashlib.sha1(listing.encode()).hexdigest()
        repository = self.repositories.setdefault(model_id, Repository(gated=gated, private=private))
        repository.commits[commit] = files
        repository.branches[branch] = commit
        return commit

    def file_requests(self, suffix: str = "", method: str = "GET") -> list[Logged]:
        """The requests for files whose name ends with `suffix`, oldest first."""
        with self._lock:
            return [r for r in self.log if r.method == method and r.status != 302 and "/resolve/" in r.path and r.path.endswith(suffix)]

    def mend(self) -> None:
        """The network is back."""
        self.break_after, self.broken = None, False

    def __enter__(self) -> FakeHub:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Switch the hub off: nothing listens any more, and answers in progress end."""
        if not self._closing.is_set():
            self._closing.set()
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    def _take(self, counter: str) -> bool:
        with self._lock:
            left = getattr(self, counter)
            setattr(self, counter, max(0, left - 1))
            return bool(left)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                path = unquote(urlsplit(self.path).path)
                if hub.broken:
                    self.close_connection = True
                    return
                answer = hub._cdn if path.startswith(CDN) else hub._answer
                status, headers, blob = answer(path, self.headers.get("Authorization"))
                if blob is not None and self.command == "GET" and hub._take("failures"):
                    status, headers, blob = 503, {}, None
                if blob is None or status != 200:
                    body = headers.pop("body", "{}").encode()
                    self._head(status, headers | {"Content-Length": str(len(body)), "Content-Type": "application/json"})
                    sent = self._write(body)
                    hub._record(Logged(self.command, path, None, status, sent))
                    return
                start = 0
                wanted = self.headers.get("Range")
                if wanted and not hub.ignore_ranges:
                    start = int(wanted.removeprefix("bytes=").split("-")[0])
                    headers["Content-Range"] = f"bytes {start}-{blob.size - 1}/{blob.size}"
                    status = 206
                if start > blob.size:
                    status, start = 416, blob.size
                self._head(status, headers | {"Content-Length": str(blob.size - start), "ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes"})
                sent = self._stream(blob, start) if self.command == "GET" else 0
                hub._record(Logged(self.command, path, wanted, status, sent))

            def _head(self, status: int, headers: dict[str, str]) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()

            def _write(self, body: bytes) -> int:
                if self.command == "HEAD":
                    return 0
                self.wfile.write(body)
                return len(body)

            def _stream(self, blob: Blob, start: int) -> int:
                spoil = blob.sha256 is not None and hub._take("corrupt")
                sent = 0
                with blob.path.open("rb") as file:
                    file.seek(start)
                    while chunk := file.read(WRITE_BYTES):
                        if spoil:
                            chunk, spoil = bytes([chunk[0] ^ 1]) + chunk[1:], False
                        if hub.cut_after is not None and start + sent + len(chunk) > hub.cut_after:
                            self.wfile.write(chunk[: max(0, hub.cut_after - start - sent)])
                            sent, hub.cut_after, self.close_connection = max(sent, hub.cut_after - start), None, True
                            return sent
                        if hub.break_after is not None and start + sent + len(chunk) > hub.break_after:
                            hub.broken = True
                        if hub.broken:  # silence: the client's own time limit ends it
                            while hub.broken and not hub._closing.wait(0.05):
                                pass
                            self.close_connection = True
                            return sent
                        try:
                            self.wfile.write(chunk)
                        except OSError:
                            self.close_connection = True
                            return sent
                        sent += len(chunk)
                        if hub.bytes_per_second and hub._closing.wait(len(chunk) / hub.bytes_per_second):
                            self.close_connection = True
                            return sent
                return sent

        return Handler

    def _record(self, entry: Logged) -> None:
        with self._lock:
            self.log.append(entry)

    def _answer(self, path: str, authorization: str | None) -> tuple[int, dict[str, str], Blob | None]:
        """Status, headers (the key "body" holds a JSON body) and, for a file, its blob."""
        token = (authorization or "").removeprefix("Bearer ")
        if token and token not in self.tokens:
            return 401, {"X-Error-Message": "Invalid credentials in Authorization header"}, None
        match = API.fullmatch(path) or RESOLVE.fullmatch(path)
        model_id = match["id"] if match else ""
        repository = self.repositories.get(model_id)
        granted = model_id in self.tokens.get(token, set())
        if match is None or repository is None or (repository.private and not granted):
            return 404 if token else 401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, None
        revision = match["revision"] or "main"
        commit = repository.branches.get(revision, revision)
        files = repository.commits.get(commit)
        if files is None:
            return 404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": f"Invalid rev id: {revision}"}, None
        name = match.groupdict().get("file")
        if name is None:
            listing = _tree(files) if match["what"] == "tree" else _info(model_id, commit, repository, files)
            return 200, {"body": json.dumps(listing)}, None
        if repository.gated and not granted:
            return 403 if token else 401, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to this model is restricted"}, None
        if name not in files:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}, None
        blob, headers = files[name], {"X-Repo-Commit": commit}
        if blob.sha256 is None:
            return 200, headers, blob
        linked = {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size)}
        if "127.0.0.1" not in self.url:  # no second name, so no CDN: the client follows a redirect to the same origin by itself
            return 200, {**headers, **linked}, blob
        return 302, {**headers, **linked, "Location": self.url.replace("127.0.0.1", "localhost") + CDN + path}, None

    def _cdn(self, path: str, authorization: str | None) -> tuple[int, dict[str, str], Blob | None]:
        match = RESOLVE.fullmatch(path.removeprefix(CDN))
        if match is None or authorization is not None:
            return 400, {}, None
        return 200, {}, self.repositories[match["id"]].commits[match["revision"]][match["file"]]


def _tree(files: dict[str, Blob]) -> list[dict[str, object]]:
    """The listing that snapshot_download of huggingface_hub 2 asks for."""
    return [
        {
            "type": "file",
            "path": name,
            "size": blob.size,
            "oid": blob.sha1,
            **({"lfs": {"oid": blob.sha256, "size": blob.size, "pointerSize": 134}} if blob.sha256 else {}),
        }
        for name, blob in files.items()
    ]


def _info(model_id: str, commit: str, repository: Repository, files: dict[str, Blob]) -> dict[str, object]:
    siblings = []
    for name, blob in files.items():
        sibling: dict[str, object] = {"rfilename": name, "size": blob.size, "blobId": blob.sha1}
        if blob.sha256:
            sibling["lfs"] = {"sha256": blob.sha256, "size": blob.size, "pointerSize": 134}
        siblings.append(sibling)
    created = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
    gated = "manual" if repository.gated else False
    return {"_id": commit[:24], "id": model_id, "modelId": model_id, "sha": commit, "private": repository.private, "gated": gated,
            "disabled": False, "downloads": 0, "likes": 0, "tags": [], "createdAt": created, "siblings": siblings}  # fmt: skip
