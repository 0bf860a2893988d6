"""The link to an engine: what each form of it has (`ray_link.py` is the other), and a child process with a socket pair."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Callable, Mapping
from typing import Protocol

import structlog

from embed_service.engine.protocol import Header, encode, read_frame

OnMessage = Callable[[Header, bytes], None]
STREAM_LIMIT_BYTES = 16 * 1024 * 1024

log = structlog.get_logger(__name__)


class Engine(Protocol):
    """One engine's life, which ends once; a new engine is a new object.

    `ended` resolves to how it ended: the exit status of a process (negative: the signal), or a sentence.
    """

    ended: asyncio.Future[int | str]

    @property
    def pid(self) -> int | None:
        """Its process, on the box where it runs."""

    @property
    def node(self) -> str | None:
        """Address of that box; None: this one."""

    async def start(self) -> None:
        """Begin its life. Returns before it is loaded."""

    def send(self, header: Header, body: bytes = b"") -> None:
        """Queue one frame. What is sent to a dead engine is lost; `ended` tells."""

    def kill(self) -> None:
        """End it at once, stopped or hung as it may be."""

    async def stop(self, seconds: float) -> None:
        """Ask it to finish, and free its device; kill it when it does not within `seconds`."""


class ChildEngine:
    """An engine on this machine: `python -m MODULE --fd N`, with one end of a socket pair.

    `on_message(header, body)` is called for each frame; the future `ended` resolves to the exit status (negative: the signal).
    `environment`: variables of its own, over those of this process. `own_group`: it leads a process group, which what it starts is in too.
    """

    node = None

    def __init__(
        self,
        on_message: OnMessage,
        environment: Mapping[str, str] | None = None,
        module: str = "embed_service.engine",
        *,
        own_group: bool = False,
    ) -> None:
        self._on_message = on_message
        self._environment = dict(environment or {})
        self._module = module
        self._own_group = own_group
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.ended: asyncio.Future[int | str] = asyncio.get_running_loop().create_future()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Spawn the process. It inherits stderr, so its log lines join ours, and the environment."""
        ours, theirs = socket.socketpair()
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                self._module,
                "--fd",
                str(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=self._own_group,
                stdout=2,  # a stray print of a library must not reach our stdout
                env={name: value for name, value in os.environ.items() if name.upper() not in self._environment} | self._environment,
            )
        finally:
            theirs.close()
        ours.setblocking(False)
        reader, self._writer = await asyncio.open_connection(sock=ours, limit=STREAM_LIMIT_BYTES)
        self._tasks = [asyncio.create_task(self._read(reader)), asyncio.create_task(self._wait())]

    def send(self, header: Header, body: bytes = b"") -> None:
        """Queue one frame. What is sent to a dead engine is lost; `ended` tells."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(encode(header, body))

    def kill(self) -> None:
        """SIGKILL: works on a stopped or hung process too."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def stop(self, seconds: float) -> None:
        """Ask it to finish; kill it when it does not within `seconds`."""
        if self._process is None:
            return
        if not self._tasks:  # `start` was cancelled between spawning and linking
            self.kill()
            await self._process.wait()
            return
        self.send({"type": "stop"})
        done, _ = await asyncio.wait([self.ended], timeout=seconds)
        if not done:
            self.kill()
            await self.ended
        for task in self._tasks:
            task.cancel()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        # A broken stream means that the process is ending; `_wait` reports it.
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                header, body = await read_frame(reader)
                try:
                    self._on_message(header, body)
                except Exception:
                    log.exception("a message of the engine could not be handled: the engine is replaced", type=header.get("type"))
                    self.kill()
                    return

    async def _wait(self) -> None:
        assert self._process is not None and self._writer is not None
        status = await self._process.wait()
        reading = self._tasks[0]
        # Answers that were written before the end still count.
        await asyncio.wait([reading], timeout=1)
        reading.cancel()
        self._writer.close()
        if not self.ended.done():
            self.ended.set_result(status)
