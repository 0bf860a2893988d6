"""One engine of the cluster: its actor, which Ray restarts, and the frames to and from it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError

from embed_service.cluster.clock import RemoteClock
from embed_service.engine.protocol import Header
from embed_service.engine.ray_actor import EngineActor
from embed_service.private_folder import make_private

TICK_SECONDS = 1.0
RETRY_SECONDS = 0.3
LEAVE_SECONDS = 10.0
SMALLEST_SHARE = 1e-3  # Ray counts in ten-thousandths, of which a float is not exactly the sum

Send = Callable[[Header, bytes], None]


class RemoteEngine:
    """`run` is one life: from the actor's answer to its end. Between two lives Ray starts the actor again, wherever there is room.

    `send(header, body)` takes frames to the HTTP process.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._actor: Any = None
        self._made_of: object = None
        self._incarnation: str | None = None  # of the last life
        self._share: dict[str, float] = {}  # of its box
        self.placed = False  # its process answered

    async def run(self, order: Mapping[str, Any]) -> str:
        """One life; how it ended. `order`: environment and own (see EngineActor), num_gpus, num_cpus."""
        clock, known = RemoteClock(), 0
        self.placed = False
        try:
            actor = await self._place(order)
            self.placed = True
            while True:
                theirs, frames = await actor.fetch.remote(known)
                clock.heard(theirs, time.monotonic())
                for header, body in frames:
                    self._send(await self._translated(actor, clock, header), body)
                known += len(frames)
        except RayActorError:
            return "its process or its box ended"
        except RayError as error:
            return f"Ray gave it up ({str(error).strip().partition(chr(10))[0]})"

    async def _place(self, order: Mapping[str, Any]) -> Any:
        """The actor once it answers, and is another incarnation than that of the last life."""
        if self._actor is not None and self._made_of != order:
            self.end()
        while True:
            if self._actor is None:
                self._made_of = order
                self._share = {"CPU": order["num_cpus"], "GPU": order["num_gpus"]}
                self._actor = EngineActor.options(  # type: ignore[attr-defined]
                    num_gpus=order["num_gpus"],
                    num_cpus=order["num_cpus"],
                    scheduling_strategy="SPREAD",
                    max_restarts=-1,
                    max_task_retries=0,  # what an engine that ended has not answered, the dispatcher sends again, to another
                ).remote(order["environment"], order["own"])
            answer = asyncio.ensure_future(_future(self._actor.hello.remote()))
            try:
                while not (await asyncio.wait({answer}, timeout=TICK_SECONDS))[0]:
                    self._send({"type": "phase", "phase": "placing", "detail": await asyncio.to_thread(_missing, order)}, b"")
                hello = answer.result()
            except ActorUnavailableError:  # Ray is restarting it
                self._send({"type": "phase", "phase": "placing", "detail": "Ray starts it again"}, b"")
                await asyncio.sleep(RETRY_SECONDS)
                continue
            except RayActorError:
                self._actor = None
                await asyncio.sleep(RETRY_SECONDS)
                continue
            finally:
                answer.cancel()
            if hello["incarnation"] == self._incarnation:  # only the way to it was broken: what it has in hand is somebody else's now
                self.kill()
                await asyncio.sleep(RETRY_SECONDS)
                continue
            self._incarnation = hello["incarnation"]
            self._send({"type": "placed", "pid": hello["pid"], "node": hello["node"], "host": hello["host"]}, b"")
            return self._actor

    def put(self, header: Header, body: bytes) -> None:
        """A frame for the engine. Whether it arrives shows in its answer."""
        if self._actor is not None:
            self._actor.put.remote(header, body)

    def kill(self) -> None:
        """End its process; Ray starts another."""
        self._kill(no_restart=False)

    def end(self) -> None:
        """End it and free what it holds."""
        self._kill(no_restart=True)
        self._actor, self.placed = None, False

    async def leave(self) -> None:
        """End it, which is placed, and wait until its box has its share back: its process is gone then, and its memory free."""
        before = await asyncio.to_thread(_free)
        self.end()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_SECONDS):
                while not _has_back(before, await asyncio.to_thread(_free), self._share):
                    await asyncio.sleep(0.1)

    def _kill(self, no_restart: bool) -> None:
        if self._actor is not None:
            with contextlib.suppress(RayError, ValueError):
                ray.kill(self._actor, no_restart=no_restart)

    async def _translated(self, actor: Any, clock: RemoteClock, header: Header) -> Header:
        """In terms of this machine: its clock, and a copy of what tokenisers read where the engine's own files are not here.

        A hub's commit names its files wherever they lie; at a folder's path there may be others on this machine.
        """
        if header["type"] == "result":
            return {**header, "started": clock.here(header["started"]), "ended": clock.here(header["ended"])}
        if header["type"] == "described":
            for fields in header["models"].values():
                here = os.path.isfile(os.path.join(fields["path"], "tokenizer.json"))
                if not here or fields["revision"].startswith("local-"):
                    fields["path"] = _write(await actor.read.remote(fields["path"]))
        return header


def _write(files: Mapping[str, bytes]) -> str:
    """A folder with these files, one for each content. Raises PermissionError where another user made it."""
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(f"{name} {len(content)}\n".encode() + content)
    folder = Path(tempfile.gettempdir()) / f"qmd-tokenizer-{os.getuid()}-{digest.hexdigest()[:16]}"
    make_private(folder)
    for name, content in files.items():
        part = folder / f".{name}"
        part.write_bytes(content)
        part.replace(folder / name)
    return str(folder)


async def _future(reference: Any) -> Any:
    return await reference


def _free() -> dict[str, float]:
    found: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    return found


def _has_back(before: Mapping[str, float], now: Mapping[str, float], share: Mapping[str, float]) -> bool:
    return all(now.get(name, 0.0) >= before.get(name, 0.0) + count - SMALLEST_SHARE for name, count in share.items())


def _missing(order: Mapping[str, Any]) -> str:
    """What no box has free, where Ray knows that."""
    free = _free()
    wanted = {"CPU": order["num_cpus"], "GPU": order["num_gpus"]}
    lacking = [f"{count:g} {name}" for name, count in wanted.items() if count > free.get(name, 0.0)]
    return f"no box has {' and '.join(lacking)} free" if lacking else ""
