"""A verified request over a stream, against real TLS servers.

FAKE: the tailnet, a program that joins its pipes to a socket as `tailscale nc` does.
"""

from __future__ import annotations

import shutil
import socket
import socketserver
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from qmdctl.errors import MissingError
from qmdctl.tailnet import through
from qmdctl.tailnet.through import Answer, Refused, Unreached, from_container, from_here, from_program, get
from tests.qmdctl.pki import Pki

pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
NAME = "qmd-embed.tail1234.ts.net"
RELAY = """
import os, socket, sys, threading
try:
    peer = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
except OSError as error:
    sys.exit(f"dial: {error}")
def up():
    while data := os.read(0, 65536):
        peer.sendall(data)
    os._exit(0)
threading.Thread(target=up, daemon=True).start()
while data := peer.recv(65536):
    os.write(1, data)
"""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = f"{self.path} {self.headers['Host']} {self.headers['Authorization']}".encode() * (5000 if self.path == "/long" else 1)
        self.send_response(503 if self.path == "/loading" else 200)
        self.send_header("Content-Length", str(len(body) + (9 if self.path == "/cut" else 0)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki")).start()


@contextmanager
def serving(certificate: tuple[Path, Path]) -> Iterator[int]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)

    class Server(ThreadingHTTPServer):
        def finish_request(self, request: socket.socket, address: object) -> None:
            try:
                with context.wrap_socket(request, server_side=True) as secured:
                    super().finish_request(secured, address)  # type: ignore[arg-type]
            except OSError:
                pass  # the client gave up on the certificate

    with Server(("127.0.0.1", 0), Handler) as server:
        yield from _running(server)


def _running(server: socketserver.BaseServer) -> Iterator[int]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1])  # type: ignore[index]
    finally:
        server.shutdown()
        thread.join()


@contextmanager
def answering(talk: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server that does `talk` with each connection."""

    class Handle(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            talk(self.request)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        allow_reuse_address = True

    with Server(("127.0.0.1", 0), Handle) as server:
        yield from _running(server)


def ask(port: int, path: str = "/health", name: str = NAME, seconds: float = 20, **headers: str) -> Answer:
    with from_program([sys.executable, "-c", RELAY, str(port)]) as stream:
        return get(stream, name, path, seconds, headers)


@pytest.fixture
def trusted(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> Pki:
    monkeypatch.setenv("SSL_CERT_FILE", str(pki.authority))
    return pki


@pytest.mark.parametrize("key", ["rsa", "ec"])
def test_a_request_with_its_name_and_key(trusted: Pki, key: str) -> None:
    with serving(trusted.certificate(NAME, key=key)) as port:
        answer = ask(port, Authorization="Bearer k")
        assert (answer.status, answer.body.decode()) == (200, f"/health {NAME} Bearer k")
        assert answer.protocol.startswith("TLSv1.")
        assert ask(port, "/loading").status == 503
        assert len(ask(port, "/long").body) > 100_000
        with from_here("127.0.0.1", 20, port) as stream:
            assert get(stream, NAME, "/health", 20).status == 200


def test_a_certificate_for_another_name_is_refused(trusted: Pki) -> None:
    with serving(trusted.certificate("qmd-embed-1.tail1234.ts.net")) as port, pytest.raises(Refused) as refused:
        ask(port)
    assert refused.value.untrusted
    assert "qmd-embed.tail1234.ts.net" in refused.value.why


def test_a_certificate_that_is_past_is_refused(trusted: Pki) -> None:
    with serving(trusted.certificate(NAME, until="20210101000000Z")) as port, pytest.raises(Refused, match="expired") as refused:
        ask(port)
    assert refused.value.untrusted


def test_an_authority_that_is_not_trusted_is_refused(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    with serving(pki.certificate(NAME)) as port, pytest.raises(Refused, match=r"self-signed|issuer") as refused:
        ask(port)
    assert refused.value.untrusted


def test_nobody_listens_or_the_program_is_not_there(trusted: Pki) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(Unreached, match=r"dial: .*refused"):
        ask(port)
    with pytest.raises(Unreached, match="refused"), from_here("127.0.0.1", 5, port):
        pass
    with pytest.raises(Unreached, match="closed"), from_program([sys.executable, "-c", ""]) as stream:
        get(stream, NAME, "/", 20)
    with pytest.raises(MissingError), from_program(["no-such-program"]):
        pass


def test_it_never_waits_longer_than_it_may(trusted: Pki) -> None:
    with pytest.raises(Unreached, match="no answer in 0"), from_program([sys.executable, "-c", "import signal; signal.pause()"]) as stream:
        get(stream, NAME, "/", 0.3)
    over = threading.Event()
    certificate = trusted.certificate(NAME)

    def handshake_only(connection: socket.socket) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        with context.wrap_socket(connection, server_side=True) as secured:
            secured.recv(1000)
            over.wait(60)

    with answering(handshake_only) as port, pytest.raises(Refused, match="not answered in"):
        try:
            ask(port, seconds=2)
        finally:
            over.set()


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "TLS fails"),
        (bytes.fromhex("15030300020250"), "alert internal error"),  # as tailscaled says where it has no certificate
        (b"\x16\x03", "the connection was closed"),
    ],
    ids=["not TLS", "alert", "ends early"],
)
def test_tls_that_fails(trusted: Pki, said: bytes, why: str) -> None:
    def talk(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(said)

    with answering(talk) as port, pytest.raises(Refused, match=why) as refused:
        ask(port)
    assert not refused.value.untrusted


def test_an_answer_that_is_cut_off_is_none(trusted: Pki) -> None:
    with serving(trusted.certificate(NAME)) as port, pytest.raises(Refused, match="no whole HTTP answer"):
        ask(port, "/cut")


def test_a_sidecar_is_asked_by_docker_and_its_program_ends_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAKE: docker, which prints what it was asked."""
    docker = tmp_path / "docker"
    docker.write_text('#!/bin/sh\necho "$@" >&2\n')
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(Unreached, match=rf"exec -i abc timeout 7 tailscale nc {NAME} 443"), from_container("abc", NAME, 5) as stream:
        get(stream, NAME, "/", 5)


@pytest.mark.parametrize(
    ("printed", "knows"),
    [
        ('{"BackendState": "Running", "Peer": {"k": {"DNSName": "Qmd-Embed.tail1234.ts.net."}}}', True),
        ('{"BackendState": "Running", "Peer": {"k": {"DNSName": "other.tail1234.ts.net."}}}', False),
        ('{"BackendState": "Stopped", "Peer": {"k": {"DNSName": "qmd-embed.tail1234.ts.net."}}}', False),
        ('{"BackendState": "Running", "Peer": null}', False),
        ("failed to connect to local tailscaled", False),
    ],
)
def test_whether_this_machine_knows_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, printed: str, knows: bool) -> None:
    """FAKE: the host's tailscale."""
    program = tmp_path / "tailscale"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{printed}\nEND\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert through.host_knows(NAME) is knows


def test_without_a_tailscale_of_its_own_this_machine_knows_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not through.host_knows(NAME)
