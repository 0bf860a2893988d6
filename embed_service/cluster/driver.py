"""Frames from the HTTP process to the engines of the cluster and back. Each carries the number of its engine."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from functools import partial
from typing import Any

import ray
import structlog

from embed_service.cluster.node import Head, taken_port
from embed_service.cluster.remote_engine import RemoteEngine
from embed_service.engine.protocol import Header, encode, read_frame
from embed_service.settings import Settings

RETRY_SECONDS = 2.0
REACH_SECONDS = 5.0
TICK_SECONDS = 1.0
NAMESPACE = "qmd-embed"
STREAM_LIMIT_BYTES = 16 * 1024 * 1024

log = structlog.get_logger(__name__)


class Driver:
    """Connects to the cluster (or starts one, where RAY_ADDRESS names none), then keeps one `RemoteEngine` per number."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._writer: asyncio.StreamWriter | None = None
        self._engines: dict[int, RemoteEngine] = {}
        self._lives: dict[int, asyncio.Task[None]] = {}
        self._ends: dict[int, asyncio.Task[None]] = {}
        self._ending = asyncio.Lock()
        self._connected = asyncio.Event()
        self._detail = ""  # why it is not

    async def run(self, sock: socket.socket) -> None:
        """Until the HTTP process is gone, or the cluster."""
        sock.setblocking(False)
        reader, self._writer = await asyncio.open_connection(sock=sock, limit=STREAM_LIMIT_BYTES)
        reading = asyncio.create_task(self._read(reader))
        connecting = asyncio.create_task(self._connect())
        await asyncio.wait({reading, connecting}, return_when=asyncio.FIRST_COMPLETED)
        if connecting.done():
            connecting.result()
        await reading

    async def _connect(self) -> None:
        address = self._settings.ray_address
        if address is None:
            address = await self._start_head()
        self._detail = f"at {address}"
        while True:
            try:
                await _reach(address)  # Ray itself would end this process where nobody listens
                await asyncio.to_thread(self._init, address)
                break
            except Exception as error:  # OSError, ConnectionError, RuntimeError or ValueError, by what is wrong
                first = str(error).strip().partition("\n")[0]
                log.warning("no Ray cluster", address=address, error=first)
                self._detail = f"at {address}: {first}"
            await asyncio.sleep(RETRY_SECONDS)
        self._connected.set()

    async def _start_head(self) -> str:
        head = Head(self._settings)
        while (port := taken_port()) is not None:  # as when the driver before was killed: its head takes a moment to end
            self._detail = f"port {port} of this box is taken: the Ray head before is ending, or another Ray node runs"
            await asyncio.sleep(RETRY_SECONDS)
        await head.start()
        self._watching = asyncio.create_task(self._end_with(head))
        return head.address

    def _init(self, address: str) -> None:
        # The address at which the others reach this box is none of the container's own where its ports are published.
        options: dict[str, Any] = {"_node_ip_address": self._settings.ray_node_ip} if self._settings.ray_node_ip else {}
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR, **options)

    async def _end_with(self, head: Head) -> None:
        await head.ended()
        log.error("the Ray head of this box ended; its log is in the folder of its session")
        os._exit(1)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                header, body = await read_frame(reader)
                self._on_frame(header.pop("engine"), header, body)

    def _on_frame(self, number: int, header: Header, body: bytes) -> None:
        kind = header["type"]
        engine = self._engines.setdefault(number, RemoteEngine(partial(self._send, number)))
        if kind == "start":
            self._cancel(number)
            self._lives[number] = asyncio.create_task(self._live(number, engine, header))
        elif kind == "kill":
            engine.kill()
            if not engine.placed:
                self._cut_off(number, "it was killed before it had a place")
        elif kind == "drop":
            self._cut_off(number, "its box did not answer")
            engine.end()
        elif kind == "end":
            self._ends[number] = asyncio.create_task(self._end(number, engine))
        else:
            engine.put(header, body)

    async def _end(self, number: int, engine: RemoteEngine) -> None:
        self._cancel(number)
        if engine.placed:
            async with self._ending:  # one after the other, as each waits for the resources that the other may free
                await engine.leave()
        else:  # at once: Ray would give it what the others free
            engine.end()
        self._send(number, {"type": "left"})

    def _cut_off(self, number: int, how: str) -> None:
        if self._cancel(number):
            self._send(number, {"type": "ended", "how": how})

    def _cancel(self, number: int) -> bool:
        """Whether there was a life to cancel. It says nothing more, so that the next frame of this number is of the next life."""
        life = self._lives.pop(number, None)
        return life is not None and life.cancel()

    async def _live(self, number: int, engine: RemoteEngine, order: Header) -> None:
        waiting = asyncio.create_task(self._connected.wait())
        while not (await asyncio.wait({waiting}, timeout=TICK_SECONDS))[0]:
            self._send(number, {"type": "phase", "phase": "connecting", "detail": self._detail})
        try:
            how = await engine.run(order)
        except Exception as error:
            log.exception("an engine of the cluster could not be handled")
            how = f"it could not be handled: {error}"
        self._send(number, {"type": "ended", "how": how})

    def _send(self, number: int, header: Header, body: bytes = b"") -> None:
        assert self._writer is not None
        self._writer.write(encode({**header, "engine": number}, body))


async def _reach(address: str) -> None:
    """Raises OSError where nobody listens at `address`."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError("RAY_ADDRESS is not an address and a port, such as 192.168.10.1:6379")
    async with asyncio.timeout(REACH_SECONDS):
        _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    writer.close()
