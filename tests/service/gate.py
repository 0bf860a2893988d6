"""A service whose engine computes one micro-batch at a time, when a test says so (the fault `gate`)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.support.service import ServiceProcess, poll


@dataclass(frozen=True)
class Seen:
    """A micro-batch in the engine: prepared, or started."""

    event: str
    lane: str
    role: str
    lengths: tuple[int, ...]


class Gate:
    """`shut` holds every micro-batch once it has started; `step` lets the one that is held be computed."""

    def __init__(self, breakable: Callable[..., ServiceProcess], folder: Path, **environment: str) -> None:
        os.mkfifo(folder / "permits")
        self._closed, self._trace = folder / "closed", folder / "trace"
        self._permits = os.open(folder / "permits", os.O_RDWR)
        # No canary comes between.
        self.service = breakable(FAULT="gate", FAULT_GATE=str(folder), **{"HEALTH_CANARY_SECONDS": "1000", **environment})
        self._skip = 0

    def shut(self) -> None:
        self._closed.touch()
        self._skip = len(self._lines())

    def step(self) -> Seen:
        """Let the held micro-batch be computed. The one that starts after it."""
        before = len(self.started())
        os.write(self._permits, b".")
        poll(lambda: len(self.started()) > before, 60, "the next micro-batch", every=0.005)
        return self.started()[before]

    def open(self) -> None:
        """Nothing is held any more."""
        self._closed.unlink(missing_ok=True)
        os.write(self._permits, b".")

    def close(self) -> None:
        self.open()
        os.close(self._permits)

    def prepared(self, lane: str | None = None) -> list[Seen]:
        return [seen for seen in self._seen() if seen.event == "prepared" and lane in (None, seen.lane)]

    def started(self, lane: str | None = None) -> list[Seen]:
        return [seen for seen in self._seen() if seen.event == "started" and lane in (None, seen.lane)]

    def standing_by(self, lane: str) -> int:
        """How many micro-batches of a lane are prepared and not started."""
        return len(self.prepared(lane)) - len(self.started(lane))

    def wait(self, condition: Callable[[], Any], what: str) -> None:
        poll(condition, 60, what, every=0.005)

    def caller(self, number: int, **options: Any) -> httpx.Client:
        """A caller of its own: another address on loopback."""
        return self.service.client(transport=httpx.HTTPTransport(local_address=f"127.0.0.{number}"), **options)

    def _lines(self) -> list[str]:
        return self._trace.read_text().splitlines()

    def _seen(self) -> list[Seen]:
        lines = [json.loads(line) for line in self._lines()[self._skip :]]
        return [Seen(line["event"], line["lane"], line["role"], tuple(line["lengths"])) for line in lines]
