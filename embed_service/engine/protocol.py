"""Frames between the HTTP process and the engine: a JSON header and a raw body.

    uint32 header length │ uint32 body length │ header (JSON) │ body (little-endian int32 or float32)

No torch here: both processes import it. The messages are listed in docs/architecture.md.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from typing import Any, Literal, Protocol

import orjson

PREFIX = struct.Struct("<II")
Header = dict[str, Any]
Lane = Literal["interactive", "bulk"]


def encode(header: Header, body: bytes = b"") -> bytes:
    """One frame. `header["type"]` names the message."""
    text = orjson.dumps(header, option=orjson.OPT_SERIALIZE_NUMPY)
    return PREFIX.pack(len(text), len(body)) + text + body


async def read_frame(reader: asyncio.StreamReader) -> tuple[Header, bytes]:
    """The next frame. Raises asyncio.IncompleteReadError when the other side is gone."""
    header_length, body_length = PREFIX.unpack(await reader.readexactly(PREFIX.size))
    header = orjson.loads(await reader.readexactly(header_length))
    return header, await reader.readexactly(body_length)


class Connection(Protocol):
    """The engine's end of a link: reads from one thread, writes from any."""

    def send(self, header: Header, body: bytes = b"") -> None: ...

    def receive(self) -> tuple[Header, bytes] | None: ...

    def flush(self) -> None:
        """Wait until what was sent outlives this process."""


class BlockingConnection:
    """The engine's end of the socket pair: blocking reads from one thread, writes from any."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._file = sock.makefile("rb")
        self._lock = threading.Lock()

    def send(self, header: Header, body: bytes = b"") -> None:
        """Raises OSError when the HTTP process is gone."""
        with self._lock:
            self._sock.sendall(encode(header, body))

    def receive(self) -> tuple[Header, bytes] | None:
        """The next frame, or None when the HTTP process is gone."""
        prefix = self._file.read(PREFIX.size)
        if len(prefix) < PREFIX.size:
            return None
        header_length, body_length = PREFIX.unpack(prefix)
        header = self._file.read(header_length)
        body = self._file.read(body_length)
        if len(header) < header_length or len(body) < body_length:
            return None
        return orjson.loads(header), body

    def flush(self) -> None:
        """What was sent is with the kernel."""

    def close(self) -> None:
        self._file.close()
        self._sock.close()
