"""An HTTPS request from another node of the tailnet: TLS is spoken here, over a connection that `tailscale nc` makes there.

So the certificate is verified as a laptop would, although no program but Tailscale's is in the sidecar. Nothing here waits for ever.
"""

from __future__ import annotations

import http.client
import io
import os
import select
import shutil
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar, cast

from qmdctl.process import talk

T = TypeVar("T")
CHUNK = 16384
MOST_BYTES = 1 << 20
HTTPS_PORT = 443


class Unreached(Exception):
    """No connection came about: the tailnet's policy may not let these two speak, which says nothing of others."""


class Refused(Exception):
    """There is a connection, but TLS or HTTP fails on it: why. `untrusted`: the certificate does not prove the name here."""

    def __init__(self, why: str, untrusted: bool = False) -> None:
        super().__init__(why)
        self.why, self.untrusted = why, untrusted


@dataclass(frozen=True)
class Answer:
    """`protocol`: of TLS, as "TLSv1.3"."""

    status: int
    body: bytes
    protocol: str


class Stream(Protocol):
    """A connection whose ends are waited for no longer than said."""

    def send(self, data: bytes, seconds: float) -> None:
        """OSError where the other end is gone or does not take it in time."""

    def receive(self, seconds: float) -> bytes:
        """Some bytes, b"" at the end. TimeoutError where none came."""

    def why(self) -> str:
        """What the program behind it had to say of its end, or ""."""


class _Pipes:
    """A program's stdin and stdout."""

    def __init__(self, write: int, read: int, said: int) -> None:
        self._write, self._read, self._said = write, read, said
        os.set_blocking(write, False)
        os.set_blocking(said, False)

    def send(self, data: bytes, seconds: float) -> None:
        view, until = memoryview(data), time.monotonic() + seconds
        while view:
            if not select.select([], [self._write], [], max(0.0, until - time.monotonic()))[1]:
                raise TimeoutError("it takes no more bytes")
            view = view[os.write(self._write, view) :]

    def receive(self, seconds: float) -> bytes:
        if not select.select([self._read], [], [], max(0.0, seconds))[0]:
            raise TimeoutError("no byte came")
        return os.read(self._read, CHUNK)

    def why(self) -> str:
        try:
            text = os.read(self._said, CHUNK) if select.select([self._said], [], [], 1)[0] else b""
        except OSError:
            text = b""
        return " ".join(text.decode("utf-8", "replace").split())[:200]


class _Socket:
    """A connection of this machine's own."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    def send(self, data: bytes, seconds: float) -> None:
        self._socket.settimeout(max(0.01, seconds))
        self._socket.sendall(data)

    def receive(self, seconds: float) -> bytes:
        self._socket.settimeout(max(0.01, seconds))
        return self._socket.recv(CHUNK)

    def why(self) -> str:
        return ""


@contextmanager
def from_container(container: str, name: str, seconds: float, port: int = HTTPS_PORT) -> Iterator[Stream]:
    """A stream to `name`:`port` from inside the sidecar with this id. MissingError where there is no docker command."""
    # It ends by itself: killing `docker exec` leaves what it started running.
    inside = ["timeout", str(round(seconds) + 2), "tailscale", "nc", name, str(port)]
    with from_program(["docker", "exec", "-i", container, *inside]) as stream:
        yield stream


@contextmanager
def from_program(command: Sequence[str]) -> Iterator[Stream]:
    with talk(command) as program:
        assert program.stdin and program.stdout and program.stderr
        yield _Pipes(program.stdin.fileno(), program.stdout.fileno(), program.stderr.fileno())


@contextmanager
def from_here(address: str, seconds: float, port: int = HTTPS_PORT) -> Iterator[Stream]:
    """A stream from this machine, where it is on the tailnet itself. Unreached where there is none."""
    try:
        connection = socket.create_connection((address, port), seconds)
    except OSError as error:
        raise Unreached(error.strerror or str(error) or type(error).__name__) from None
    with closing(connection):
        yield _Socket(connection)


def host_knows(name: str) -> bool:
    """Whether this machine has a Tailscale of its own that knows the node with that full name."""
    import json

    from qmdctl.errors import QmdError
    from qmdctl.process import run

    if not shutil.which("tailscale"):
        return False
    try:
        status = json.loads(run(["tailscale", "status", "--json"], check=False, timeout_seconds=3).stdout)
    except (QmdError, ValueError):
        return False
    peers = (status.get("Peer") or {}).values() if isinstance(status, dict) and status.get("BackendState") == "Running" else ()
    return any(str(peer.get("DNSName") or "").rstrip(".").lower() == name.lower() for peer in peers)


def trust() -> ssl.SSLContext:
    """The system's certificates, or those of SSL_CERT_FILE (OpenSSL's own variable); certifi's where Python finds none of the system's."""
    context = ssl.create_default_context()
    paths = ssl.get_default_verify_paths()
    if not paths.cafile and not paths.capath:
        import certifi

        context.load_verify_locations(certifi.where())
    return context


def get(
    stream: Stream, name: str, path: str, seconds: float, headers: Mapping[str, str] | None = None, context: ssl.SSLContext | None = None
) -> Answer:
    """One GET to https://`name``path` over `stream`, verified for that name, all in `seconds`.

    Unreached where not a byte came from there, Refused where TLS or HTTP fails.
    """
    until = time.monotonic() + seconds
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = (context or trust()).wrap_bio(incoming, outgoing, server_hostname=name)
    link = _Link(stream, incoming, outgoing, until)
    try:
        link.drive(tls.do_handshake)
        link.drive(lambda: tls.write(_request(name, path, headers or {})))
        raw = link.read_all(tls)
    except ssl.SSLCertVerificationError as error:
        raise Refused(error.verify_message or str(error), untrusted=True) from None
    except ssl.SSLError as error:
        raise Refused(f"TLS fails: {_reason(error)}") from None
    except TimeoutError:
        if not link.heard:
            raise Unreached(f"no answer in {seconds:g} s") from None
        raise Refused(f"it was not answered in {seconds:g} s") from None
    except (OSError, EOFError):  # the end came before TLS was through
        said = stream.why()
        if not link.heard:
            raise Unreached(said or "the connection was closed") from None
        raise Refused(f"the connection was closed{': ' + said if said else ''}") from None
    return _parse(raw, tls.version() or "")


class _Link:
    """Moves bytes between OpenSSL's buffers and the stream until a step of TLS is done."""

    def __init__(self, stream: Stream, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, until: float) -> None:
        self._stream, self._in, self._out, self._until = stream, incoming, outgoing, until
        self.heard = False

    def drive(self, step: Callable[[], T]) -> T:
        """What `step` returns. EOFError where the stream ends before it is done."""
        while True:
            try:
                done = step()
            except ssl.SSLWantReadError:
                self._flush()
                self._fill()
            else:
                self._flush()
                return done

    def read_all(self, tls: ssl.SSLObject) -> bytes:
        """All until the other side closes, with or without TLS's own goodbye."""
        raw = bytearray()
        while len(raw) < MOST_BYTES:
            try:
                part = self.drive(lambda: tls.read(CHUNK))
            except (ssl.SSLZeroReturnError, EOFError):
                break
            if not part:
                break
            raw += part
        return bytes(raw)

    def _fill(self) -> None:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        data = self._stream.receive(left)
        if not data:
            raise EOFError
        self.heard = True
        self._in.write(data)

    def _flush(self) -> None:
        if self._out.pending:
            self._stream.send(self._out.read(), self._until - time.monotonic())


def _request(name: str, path: str, headers: Mapping[str, str]) -> bytes:
    lines = [f"GET {path} HTTP/1.1", f"Host: {name}", "Connection: close", *(f"{key}: {value}" for key, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode("latin-1")


class _Read:
    """What http.client takes for a socket: an answer that is here already."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self._raw)


def _parse(raw: bytes, protocol: str) -> Answer:
    response = http.client.HTTPResponse(cast(socket.socket, _Read(raw)))
    try:
        response.begin()
        return Answer(response.status, response.read(), protocol)
    except (http.client.HTTPException, OSError, ValueError):
        raise Refused("what came back is no whole HTTP answer" if raw else "the connection was closed without an answer") from None


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).replace("_", " ").lower()
