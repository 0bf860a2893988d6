"""Frames on their way to the HTTP process: a thread writes them, so that the device does not wait for a process that is slow to read."""

from __future__ import annotations

import os
import queue
import threading

from embed_service.engine.protocol import Connection, Header


class Outbox:
    """Frames leave in the order of `put`. What waits is bounded by the protocol: each `run` follows upon a `started` that was read."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._frames: queue.Queue[tuple[Header, bytes]] = queue.Queue()
        threading.Thread(target=self._write, name="outbox", daemon=True).start()

    def put(self, header: Header, body: bytes = b"") -> None:
        """Returns at once."""
        self._frames.put((header, body))

    def flush(self) -> None:
        """Wait until everything that was put is where it outlives this process."""
        self._frames.join()
        self._connection.flush()

    def _write(self) -> None:
        while True:
            try:
                self._connection.send(*self._frames.get())
            except OSError:
                os._exit(0)  # the HTTP process is gone
            self._frames.task_done()
