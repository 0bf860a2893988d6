"""The link to engines on other boxes: Ray actors, behind a process that speaks to Ray (`embed_service.cluster`).

Nothing of Ray is imported here: a Ray driver ends with its cluster, and the HTTP process must not.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import structlog

from embed_service.cluster.node import ray_environment
from embed_service.engine.protocol import Header
from embed_service.scheduler.keeper import NewEngine
from embed_service.scheduler.link import ChildEngine, OnMessage
from embed_service.settings import Settings

KILL_SECONDS = 20.0  # the box of an engine that does not end within this does not answer: it is given up
DROP_SECONDS = 10.0  # a process that speaks to Ray and has not given it up within this hangs itself
END_SECONDS = 15.0  # for each engine, as they end one after the other, until its box has freed what it held; else the process hangs
# What decides the answers, and how work is cut, is the same on every box.
SHARED = (
    "embed_model", "rerank_model", "embed_revision", "rerank_revision", "max_input_tokens", "max_batch_size", "max_batch_tokens",
    "bulk_aging_seconds", "log_level", "log_format",
)  # fmt: skip
# How a box computes is its own affair where it says so.
OWN = ("device", "dtype", "use_flash_attn", "embed_memory_gb", "cpu_threads")

log = structlog.get_logger(__name__)


def new_engines(settings: Settings) -> Sequence[NewEngine]:
    """One function per engine that ENGINES asks for."""
    if settings.engines == "child":
        return [ChildEngine]
    driver = RayDriver(settings)
    return [partial(RayEngine, driver, number) for number in range(settings.ray_engines)]


class RayDriver:
    """The process that speaks to Ray, for all engines. It is started with the first engine, and again when it has ended."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._child: ChildEngine | None = None
        self._starting = asyncio.Lock()
        self._links: dict[int, RayEngine] = {}
        self._revisions: dict[str, str] = {}  # of a hub's models: every box takes the one that was taken first
        self._orders: dict[int, Header] = {}

    async def start(self, link: RayEngine) -> None:
        """Have the engine of `link` started, in the place of the one before it with this number."""
        async with self._starting:
            if self._child is None or self._child.ended.done():
                self._child = None
                child = ChildEngine(self._on_message, ray_environment(self._settings), "embed_service.cluster", own_group=True)
                try:
                    await child.start()
                except BaseException:
                    await child.stop(0)
                    raise
                child.ended.add_done_callback(partial(self._on_end, child.pid))
                self._child = child
        self._links[link.number] = link
        if link.number not in self._orders:
            self._orders[link.number] = self._order(link.environment)
        self.send(link.number, self._orders[link.number])

    def _order(self, models: Mapping[str, str]) -> Header:
        """What an actor is made of. One of equal order is restarted by Ray, else it is replaced."""
        settings = self._settings
        environment = {**_environment(settings, SHARED), **models}
        for role in ("EMBED", "RERANK"):
            if not environment.get(f"{role}_REVISION"):
                environment[f"{role}_REVISION"] = self._revisions.get(environment[f"{role}_MODEL"], "")
        return {
            "type": "start",
            "environment": environment,
            "own": _environment(settings, OWN),
            "num_gpus": settings.ray_gpus_per_engine,
            "num_cpus": settings.ray_cpus_per_engine,
        }

    def send(self, number: int, header: Header, body: bytes = b"") -> None:
        if self._child is not None:
            self._child.send({**header, "engine": number}, body)

    def kill(self, link: RayEngine) -> None:
        """The engine. Where its box is silent, as without power, it is given up; the whole process where that is silent too."""
        self._orders.pop(link.number, None)  # a box that was refused for its revision is told the right one
        self.send(link.number, {"type": "kill"})
        if self._child is not None:
            self._after(KILL_SECONDS, link, partial(self._drop, link, self._child))

    def _drop(self, link: RayEngine, child: ChildEngine) -> None:
        log.error("an engine's box does not answer: it is given up", engine=link.number, node=link.node)
        self.send(link.number, {"type": "drop"})
        self._after(DROP_SECONDS, link, child.kill)

    @staticmethod
    def _after(seconds: float, link: RayEngine, act: Callable[[], None]) -> None:
        """Unless it has ended by then."""
        asyncio.get_running_loop().call_later(seconds, lambda: None if link.ended.done() else act())

    async def end(self, link: RayEngine, seconds: float) -> None:
        """The engine, for good. The process stays: a cluster that begins with it would end, and every box's node with that."""
        self._orders.pop(link.number, None)
        child = self._child
        if child is None or self._links.get(link.number) is not link:
            return
        self.send(link.number, {"type": "end"})
        told: list[asyncio.Future[Any]] = [link.left, child.ended]
        if not (await asyncio.wait(told, timeout=max(seconds, END_SECONDS * len(self._links)), return_when=asyncio.FIRST_COMPLETED))[0]:
            child.kill()
            await child.ended
        self._links.pop(link.number, None)

    def _on_message(self, header: Header, body: bytes) -> None:
        number = header.pop("engine")
        if number is None:  # it concerns all of them
            for each in self._links.values():
                each.on_frame(header, body)
            return
        link = self._links.get(number)
        if link is None or (link.ended.done() and header["type"] != "left"):
            return
        if header["type"] == "described":
            for fields in header["models"].values():
                if not fields["revision"].startswith("local-"):
                    self._revisions.setdefault(fields["id"], fields["revision"])
        link.on_frame(header, body)

    def _on_end(self, pid: int | None, ended: asyncio.Future[int | str]) -> None:
        if pid is not None:  # its head ends with it, but agents of that keep their ports for a minute, and the next head needs them
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
        log.error("the process that speaks to Ray ended", status=ended.result())
        for link in self._links.values():
            link.finish("the process that speaks to Ray ended")


class RayEngine:
    """One life of an engine on another box."""

    def __init__(self, driver: RayDriver, number: int, on_message: OnMessage, environment: Mapping[str, str]) -> None:
        self._driver = driver
        self._on_message = on_message
        self.number = number
        self.environment = environment
        self.pid: int | None = None
        self.node: str | None = None
        self.ended: asyncio.Future[int | str] = asyncio.get_running_loop().create_future()
        self.left: asyncio.Future[None] = asyncio.get_running_loop().create_future()  # its box has its share back

    async def start(self) -> None:
        """Ask for it. Where the cluster is not there, or has no room, it waits for that."""
        await self._driver.start(self)

    def send(self, header: Header, body: bytes = b"") -> None:
        """Queue one frame. What is sent to a dead engine is lost; `ended` tells."""
        self._driver.send(self.number, header, body)

    def kill(self) -> None:
        """End its process; Ray starts another."""
        self._driver.kill(self)

    async def stop(self, seconds: float) -> None:
        """End it and free its device."""
        await self._driver.end(self, seconds)

    def on_frame(self, header: Header, body: bytes) -> None:
        """One frame of the engine, or of the cluster about it."""
        if header["type"] == "ended":
            self.finish(header["how"])
        elif header["type"] == "left":
            self.finish("it was asked to end")
            self.left.set_result(None)
        elif header["type"] == "placed":
            self.pid, self.node = header["pid"], header["node"]
            log.info("engine placed", engine=self.number, **{key: header[key] for key in ("node", "host", "pid")})
        else:
            self._on_message(header, body)

    def finish(self, how: str) -> None:
        """It has ended."""
        if not self.ended.done():
            self.ended.set_result(how)


def _environment(settings: Settings, names: Sequence[str]) -> dict[str, str]:
    """Settings as environment variables, as far as they have a value."""
    return {name.upper(): str(value) for name in names if (value := getattr(settings, name)) is not None}
