"""How far a run is, on stderr: a bar on a terminal, else a line per phase and one every half minute."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

from qmdctl.terminal import Terminal, human_seconds

if TYPE_CHECKING:
    from rich.progress import Progress

EVERY_SECONDS = 30.0
REDRAW_SECONDS = 0.25


def make_progress(terminal: Terminal, seconds: float) -> PlainProgress | LiveProgress:
    return LiveProgress(seconds) if terminal.live else PlainProgress(terminal, seconds)


class PlainProgress:
    def __init__(self, terminal: Terminal, seconds: float) -> None:
        self.terminal, self.seconds = terminal, seconds
        self._started = self._said = time.monotonic()
        self._title = self._text = ""

    def __enter__(self) -> PlainProgress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return

    def begin(self, title: str) -> None:
        self._title, self._text = title, ""
        self._say("")

    def step(self, text: str) -> None:
        self._text = text

    def tick(self) -> None:
        if time.monotonic() - self._said >= EVERY_SECONDS:
            self._say(f": {self._text or 'no answer yet'}")

    def _say(self, rest: str) -> None:
        self._said = time.monotonic()
        self.terminal.note(f"[{human_seconds(self._said - self._started)} of {human_seconds(self.seconds)}] {self._title}{rest}", "dim")


class LiveProgress:
    """Drawn with rich. The bar is time: a run ends after `seconds` at the latest."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._started = time.monotonic()
        self._bar: Progress | None = None
        self._title = ""

    def __enter__(self) -> LiveProgress:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (BarColumn(), TextColumn("{task.description}", markup=False), TimeRemainingColumn())
        self._bar = Progress(*columns, console=Console(stderr=True, highlight=False), transient=True)
        self._bar.start()
        self._bar.add_task("", total=self.seconds)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self, title: str) -> None:
        self._title = title
        self._draw(title)

    def step(self, text: str) -> None:
        self._draw(f"{self._title}: {text}")

    def tick(self) -> None:
        self._draw()

    def _draw(self, description: str | None = None) -> None:
        if self._bar is not None:
            done = min(time.monotonic() - self._started, self.seconds)
            self._bar.update(self._bar.task_ids[0], completed=done, description=description)
