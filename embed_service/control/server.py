"""The HTTP process's end of the control socket."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import stat
from pathlib import Path
from typing import Any

import structlog

from embed_service.control.operations import Caller, Operations
from embed_service.control.wire import LINE_BYTES, ControlError, encode, parse
from embed_service.private_folder import make_private

__all__ = ["ControlServer"]

COMMAND_SECONDS = 10.0  # for the line with the command

log = structlog.get_logger(__name__)


class ControlServer:
    """Listens on the Unix socket `path`, in a folder that only this user can enter."""

    def __init__(self, path: str, operations: Operations) -> None:
        self._path = Path(path)
        self._operations = operations
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Where it cannot listen, the service serves without it and logs why."""
        try:
            make_private(self._path.parent)
            self._remove_stale()
            self._server = await asyncio.start_unix_server(self._accept, self._path, limit=LINE_BYTES)
            self._path.chmod(0o600)
        except OSError as error:
            log.error("no control socket: pause, resume and switch are not available", path=str(self._path), why=str(error))

    async def close(self) -> None:
        """Ends what is under way."""
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._path.unlink(missing_ok=True)

    def _remove_stale(self) -> None:
        try:
            mode = self._path.lstat().st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            raise FileExistsError(f"{self._path} is not a socket. Remove it, or name another path in CONTROL_SOCKET.")
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1)
            try:
                probe.connect(str(self._path))
            except (ConnectionRefusedError, FileNotFoundError):
                self._path.unlink(missing_ok=True)  # of a process that was killed
                return
        raise FileExistsError(f"another service listens on {self._path}. Name another path in CONTROL_SOCKET.")

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._answer(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass  # the client is gone, or the service ends: asyncio's streams log a cancelled handler as a failure
        finally:
            self._connections.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def send(message: dict[str, Any]) -> None:
            if not writer.is_closing():
                writer.write(encode(message))

        caller = Caller(send)
        leaving: asyncio.Task[None] | None = None
        try:
            async with asyncio.timeout(COMMAND_SECONDS):
                command = parse(await reader.readline())
            log.info("control", **command.model_dump(exclude_none=True))
            leaving = asyncio.create_task(_set_at_end(reader, caller.gone))
            send({"done": True, **await self._operations.run(command, caller)})
        except (TimeoutError, ValueError):
            send({"error": "No command came: one line of JSON was expected.", "code": "bad_command"})
        except ControlError as error:
            send({"error": error.message, "code": error.code, **self._operations.describe()})
        except Exception as error:
            log.exception("a command failed")
            send({"error": f"{type(error).__name__}: {error}. The service's log has the traceback.", "code": "internal"})
        finally:
            if leaving is not None:
                leaving.cancel()
        await writer.drain()


async def _set_at_end(reader: asyncio.StreamReader, gone: asyncio.Event) -> None:
    with contextlib.suppress(ConnectionError):
        while await reader.read(LINE_BYTES):
            pass
    gone.set()
