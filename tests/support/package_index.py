"""A package index on loopback (PEP 503 and 691), serving wheels that are built here."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType


def wheel(name: str, version: str, files: dict[str, str]) -> bytes:
    """A pure wheel with `files` (path → text) and its metadata."""
    info = f"{name}-{version}.dist-info"
    content = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    content[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*content, f"{info}/RECORD"])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, text in content.items():
            archive.writestr(path, text)
    return buffer.getvalue()


class PackageIndex:
    """Context manager. `files` maps file names to their bytes; with `login` ("user:password") it demands basic authentication."""

    def __init__(self, files: dict[str, bytes], login: str = "") -> None:
        self.files = files
        self.login = login
        self.requests: list[str] = []
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                index.answer(self)

            def do_HEAD(self) -> None:
                index.answer(self)

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever)

    @property
    def url(self) -> str:
        login = f"{self.login}@" if self.login else ""
        return f"http://{login}127.0.0.1:{self.server.server_port}/simple"

    def lock(self, *names: str) -> str:
        """A requirements file that pins the wheels of those distributions by hash."""
        lines = []
        for file, content in self.files.items():
            name, version = file.split("-")[:2]
            if name in names:
                lines.append(f"{name}=={version} --hash=sha256:{hashlib.sha256(content).hexdigest()}\n")
        return "".join(lines)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.requests.append(request.path)
        status, kind, body = 404, "text/plain", b"not here"
        parts = request.path.strip("/").split("/")
        expected = "Basic " + base64.b64encode(self.login.encode()).decode()
        if self.login and request.headers.get("Authorization") != expected:
            status, body = 401, b"who are you"
        elif parts[0] == "files" and parts[-1] in self.files:
            status, kind, body = 200, "application/octet-stream", self.files[parts[-1]]
        elif parts[0] == "simple" and (found := {f: b for f, b in self.files.items() if f.split("-")[0] == parts[-1]}):
            status = 200
            if "json" in request.headers.get("Accept", ""):
                kind, body = "application/vnd.pypi.simple.v1+json", self.page(parts[-1], found)
            else:
                kind, body = "text/html", "".join(f'<a href="/files/{file}">{file}</a>\n' for file in found).encode()
        request.send_response(status)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(body)))
        if status == 401:
            request.send_header("WWW-Authenticate", "Basic")
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body)

    def page(self, name: str, found: dict[str, bytes]) -> bytes:
        entries = [
            {"filename": file, "url": f"/files/{file}", "size": len(body), "hashes": {"sha256": hashlib.sha256(body).hexdigest()}}
            for file, body in found.items()
        ]
        versions = sorted({file.split("-")[1] for file in found})
        return json.dumps({"meta": {"api-version": "1.1"}, "name": name, "versions": versions, "files": entries}).encode()

    def __enter__(self) -> PackageIndex:
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
