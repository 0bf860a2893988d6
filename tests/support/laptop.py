"""What a laptop meets: certificates of an authority made by openssl, TLS ends, servers that answer rightly or wrongly, a FAKE tailscale."""

from __future__ import annotations

import contextlib
import json
import select
import shlex
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

SUFFIX = "tail0001.ts.net"
CA_CONFIG = """
[ca]
default_ca = own
[own]
dir = .
database = index.txt
new_certs_dir = .
serial = serial
default_md = sha256
policy = any
copy_extensions = copy
[any]
commonName = supplied
"""


class Authority:
    """A certificate authority of its own, in `folder`; `file` is what SSL_CERT_FILE has to name."""

    def __init__(self, folder: Path, name: str = "Test Authority") -> None:
        folder.mkdir()
        self.folder, self.file = folder, folder / "ca.crt"
        (folder / "ca.cnf").write_text(CA_CONFIG)
        (folder / "index.txt").touch()
        (folder / "serial").write_text("01\n")
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", "ca.key"]
        self._openssl("req", "-x509", *key, "-out", "ca.crt", "-days", "30", "-subj", f"/O={name}/CN={name} Root")

    def issue(self, *names: str, start: str = "20200101000000Z", end: str = "20991231000000Z") -> ssl.SSLContext:
        """A server's context with a certificate for `names` (host names, or `IP:…`)."""
        stem = f"server{len(list(self.folder.glob('*.key')))}"
        alternatives = ",".join(name if name.startswith("IP:") else f"DNS:{name}" for name in names)
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{stem}.key", "-out", f"{stem}.csr"]
        self._openssl("req", *key, "-subj", "/CN=server", "-addext", f"subjectAltName={alternatives}")
        dates = ["-startdate", start, "-enddate", end]
        signed = ["-in", f"{stem}.csr", "-out", f"{stem}.crt", "-cert", "ca.crt", "-keyfile", "ca.key", "-notext", "-batch"]
        self._openssl("ca", "-config", "ca.cnf", *signed, *dates)
        (self.folder / "index.txt").write_text("")  # another certificate of the same subject is no error
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / f"{stem}.crt", self.folder / f"{stem}.key")
        return context

    def _openssl(self, *arguments: str) -> None:
        done = subprocess.run(["openssl", *arguments], cwd=self.folder, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr


RIGHT: dict[str, Any] = {
    "/health": {"status": "ok", "models": {"embed": "a/embedder", "rerank": "a/reranker"}},
    "/v1/embeddings": {"model": "a/embedder", "data": [{"embedding": [0.6, 0.8]}] * 3},
    "/v1/rerank": {"model": "a/reranker", "results": [{"index": 0, "relevance_score": 0.9}, {"index": 1, "relevance_score": 0.1}]},
    "/v1/completions": {"model": "a/writer", "choices": [{"text": " water cactus"}]},
    "/v1/chat/completions": {"model": "a/writer", "choices": [{"message": {"content": "lex: water a cactus"}}]},
    "/v1/models": {"object": "list", "data": [{"id": "a/writer", "owned_by": "vllm"}, {"id": "default", "owned_by": "vllm"}]},
}


@dataclass
class Answer:
    """What is answered instead of the right thing: a body that is no text goes out as JSON."""

    status: int
    body: Any = ""
    type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


class FakeStack:
    """FAKE of both services at one port of 127.0.0.1: answers rightly, but where `wrong` has the path. `requests` is what came."""

    def __init__(self, context: ssl.SSLContext | None = None, wrong: Mapping[str, Answer] | None = None, key: str = "") -> None:
        self.wrong, self.key = dict(wrong or {}), key
        self.requests: list[tuple[str, str, Any]] = []  # path, authorization, body
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.reply(None)

            def do_POST(self) -> None:
                self.reply(json.loads(self.rfile.read(int(self.headers["content-length"]))))

            def reply(self, body: Any) -> None:
                bearer = self.headers.get("authorization", "")
                outer.requests.append((self.path, bearer, body))
                answer = outer.wrong.get(self.path) or Answer(200, RIGHT.get(self.path, {}))
                if outer.key and self.path != "/health" and bearer != f"Bearer {outer.key}":
                    answer = Answer(401, {"error": {"message": "This server wants an API key"}})
                content = answer.body.encode() if isinstance(answer.body, str) else json.dumps(answer.body).encode()
                self.send_response(answer.status)
                headers = {"content-type": answer.type, "content-length": str(len(content)), **answer.headers}
                if self.path == "/v1/embeddings":
                    headers["x-embedding-fingerprint"] = "f00d"
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def finish_request(self, request: Any, client_address: Any) -> None:
                # The handshake in the connection's own thread; a client that refuses the certificate breaks it off.
                with (
                    contextlib.suppress(OSError),
                    context.wrap_socket(request, server_side=True) if context else contextlib.nullcontext(request) as connection,
                ):
                    super().finish_request(connection, client_address)

        self.server = Server(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        self.url = f"{'https://localhost' if context else 'http://127.0.0.1'}:{self.port}"
        self._thread = threading.Thread(target=self.server.serve_forever, daemon=True)

    def __enter__(self) -> FakeStack:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()


@contextlib.contextmanager
def tls_end(context: ssl.SSLContext, port: int) -> Iterator[int]:
    """What a sidecar does: ends TLS at a port of its own, which is given, and passes the bytes on to `port` of 127.0.0.1."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(raw: socket.socket) -> None:
        with (
            contextlib.suppress(OSError),
            context.wrap_socket(raw, server_side=True) as secured,
            socket.create_connection(("127.0.0.1", port)) as behind,
        ):
            other = {secured: behind, behind: secured}
            while True:
                # What TLS has decrypted already, select does not see.
                for source in [secured] if secured.pending() else select.select([secured, behind], [], [])[0]:
                    chunk = source.recv(65536)
                    if not chunk:
                        return
                    other[source].sendall(chunk)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@contextlib.contextmanager
def silent_port() -> Iterator[int]:
    """A port that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@contextlib.contextmanager
def dripping_port(head: bytes, piece: bytes = b" ") -> Iterator[int]:
    """A port that answers every request with `head` and then `piece`, fifty times a second and without an end."""
    listener, ended = socket.create_server(("127.0.0.1", 0)), threading.Event()

    def serve(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            connection.recv(65536)
            connection.sendall(head)
            while not ended.wait(0.02):
                connection.sendall(piece)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        ended.set()
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def node(label: str, address: str, *, online: bool = True, **more: Any) -> dict[str, Any]:
    """A node as `tailscale status --json` has it."""
    return {
        "HostName": label,
        "DNSName": f"{label}.{SUFFIX}.",
        "TailscaleIPs": [address],
        "AllowedIPs": [f"{address}/32"],
        "Online": online,
        "CurAddr": "",
        "Relay": "fra",
        "PeerRelay": "",
        "UserID": 1,
        **more,
    }


def status(*peers: dict[str, Any], state: str = "Running", magic_dns: bool = True) -> dict[str, Any]:
    """The whole document."""
    return {
        "Version": "1.102.3-t0123-g4567",
        "BackendState": state,
        "TailscaleIPs": ["100.64.0.9"],
        "Self": node("laptop", "100.64.0.9"),
        "Health": [],
        "MagicDNSSuffix": SUFFIX,
        "CurrentTailnet": {"Name": "example.com", "MagicDNSSuffix": SUFFIX, "MagicDNSEnabled": magic_dns},
        "Peer": {f"nodekey:{number:04x}": peer for number, peer in enumerate(peers)},
        "User": {},
    }


def fake_tailscale(folder: Path, document: Any, pong: str = "", *, exit_status: int = 0, complaint: str = "") -> str:
    """A FAKE tailscale program in `folder`, which prints `document` and, to a ping, `pong`. The PATH that has it."""
    folder.mkdir(exist_ok=True)
    (folder / "status.json").write_text(document if isinstance(document, str) else json.dumps(document))
    (folder / "pong.txt").write_text(pong)
    program = folder / "tailscale"
    program.write_text(
        "#!/bin/sh\n# FAKE tailscale\n"
        f"[ -z {shlex.quote(complaint)} ] || {{ echo {shlex.quote(complaint)} >&2; exit {exit_status}; }}\n"
        f'case "$1" in status) cat {shlex.quote(str(folder))}/status.json ;; ping) cat {shlex.quote(str(folder))}/pong.txt ;; esac\n'
    )
    program.chmod(0o755)
    return f"{folder}:/usr/bin:/bin"
