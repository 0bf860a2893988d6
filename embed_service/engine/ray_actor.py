"""An engine as a Ray actor: the same `EngineProcess` in the actor's process, its frames carried by the actor's methods.

The actor is made by `embed_service.cluster`. Where the engine ends its process (a sticky CUDA error, an error while computing), the actor
ends with it, and Ray starts another.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray

from embed_service.engine.protocol import Header

Frame = tuple[Header, bytes]
POLL_SECONDS = 5.0  # an answer without frames after this; heartbeats come more often
FLUSH_SECONDS = 10.0  # a driver that does not fetch for so long is gone, and Ray is about to end the actor
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


class ActorConnection:
    """The engine's end of the link, as `BlockingConnection` is of a socket pair.

    Frames are kept until the other side says that it has them.
    """

    def __init__(self) -> None:
        self._incoming: queue.SimpleQueue[Frame | None] = queue.SimpleQueue()
        self._outgoing: deque[Frame] = deque()
        self._first = 0  # number of the first of `_outgoing`
        self._changed = threading.Condition()

    # For the engine

    def send(self, header: Header, body: bytes = b"") -> None:
        """Returns at once."""
        with self._changed:
            self._outgoing.append((header, body))
            self._changed.notify_all()

    def receive(self) -> Frame | None:
        """The next frame, waiting for one."""
        return self._incoming.get()

    def flush(self) -> None:
        """Wait until the other side has everything that was sent, so that it outlives this process."""
        with self._changed:
            last = self._first + len(self._outgoing)
            self._changed.wait_for(lambda: self._first >= last, FLUSH_SECONDS)

    # For the actor

    def put(self, header: Header, body: bytes) -> None:
        """A frame has come."""
        self._incoming.put((header, body))

    def fetch(self, known: int) -> list[Frame]:
        """What was sent after the first `known` frames, waiting up to POLL_SECONDS for something. Those are forgotten."""
        with self._changed:
            while self._first < known:
                self._outgoing.popleft()
                self._first += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._outgoing, POLL_SECONDS)
            return list(self._outgoing)


@ray.remote(concurrency_groups={"in": 1, "out": 1})  # type: ignore[call-overload]
class EngineActor:
    """Methods of one group run in the order of their calls, groups side by side."""

    def __init__(self, environment: Mapping[str, str], own: Mapping[str, str]) -> None:
        """`environment`: settings that count on every box; `own`: those for which the box's own value goes first."""
        os.environ.pop("OMP_NUM_THREADS", None)  # Ray sets it to the actor's CPUs; CPU_THREADS is ours
        os.environ.update({name: value for name, value in own.items() if not os.environ.get(name)})
        os.environ.update(environment)
        from embed_service.engine.__main__ import prepare_environment

        prepare_environment()
        from embed_service.engine.process import EngineProcess

        self._incarnation = uuid.uuid4().hex
        self._connection = ActorConnection()
        threading.Thread(target=EngineProcess(self._connection).run, name="engine", daemon=True).start()

    def hello(self) -> dict[str, Any]:
        """Which process this is, and where."""
        return {
            "incarnation": self._incarnation,
            "pid": os.getpid(),
            "node": ray.util.get_node_ip_address(),  # type: ignore[no-untyped-call]
            "host": socket.gethostname(),
        }

    def read(self, folder: str) -> dict[str, bytes]:
        """The tokenizer's files in a model's folder."""
        files = [Path(folder) / name for name in TOKENIZER_FILES]
        return {file.name: file.read_bytes() for file in files if file.is_file()}

    @ray.method(concurrency_group="in")
    def put(self, header: Header, body: bytes) -> None:
        """A frame for the engine."""
        self._connection.put(header, body)

    @ray.method(concurrency_group="out")
    def fetch(self, known: int) -> tuple[float, list[Frame]]:
        """time.monotonic() here, and the engine's frames after the first `known`, as soon as there is one."""
        frames = self._connection.fetch(known)
        return time.monotonic(), frames
