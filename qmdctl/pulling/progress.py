"""What of a pull has arrived, shown on one line of a terminal, or in a line now and then."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from qmdctl.terminal import Terminal, human_bytes, human_seconds

PLAIN_SECONDS = 15.0
LIVE_SECONDS = 0.2


@dataclass
class Item:
    """One image or model. Bytes; `total` 0 while it is not known."""

    name: str
    done: int = 0
    total: int = 0
    state: str = "waiting"  # waiting, downloading, building, complete, failed

    @property
    def text(self) -> str:
        if self.state == "downloading" and self.total:
            return f"{self.name} {human_bytes(self.done)} of {human_bytes(self.total)}"
        return f"{self.name} {self.state}"


@dataclass
class Progress:
    """Several threads report into it; the thread that owns it draws."""

    terminal: Terminal
    items: dict[str, Item] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _shown: float = 0.0
    _width: int = 0
    _began: float = field(default_factory=time.monotonic)

    def set(self, name: str, *, state: str | None = None, done: int | None = None, total: int | None = None) -> None:
        with self._lock:
            item = self.items.setdefault(name, Item(name))
            changed = state is not None and state != item.state
            item.state = state if state is not None else item.state
            item.done = done if done is not None else item.done
            item.total = total if total is not None else item.total
            self._draw(item if changed else None)

    def _draw(self, changed: Item | None) -> None:
        now = time.monotonic()
        if self.terminal.live:
            if changed or now - self._shown >= LIVE_SECONDS:
                self._shown = now
                line = " · ".join(item.text for item in self.items.values())[:200]
                self.terminal.over(line.ljust(self._width))
                self._width = len(line)
        elif changed:
            self.terminal.note(f"[{human_seconds(now - self._began)}] {changed.text}")
        elif now - self._shown >= PLAIN_SECONDS:
            self._shown = now
            moving = [item.text for item in self.items.values() if item.state == "downloading"]
            if moving:
                self.terminal.note(f"[{human_seconds(now - self._began)}] {' · '.join(moving)}")

    def close(self) -> None:
        """Leave the live line."""
        if self.terminal.live and self._width:
            self.terminal.note("")
