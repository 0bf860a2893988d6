"""The display of a start, on stderr: lines that are drawn over on a terminal, else a line per change."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from qmdctl.startup.estimate import Estimate, Progress
from qmdctl.tailnet.login import login_text
from qmdctl.terminal import Terminal, human_bytes, human_seconds

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

PLAIN_EVERY_SECONDS = 30.0
STYLES = {"ready": "green", "error": "red", "unhealthy": "red", "exited": "red", "restarting": "yellow"}


def make_display(terminal: Terminal, estimate: Estimate) -> PlainDisplay | LiveDisplay:
    return LiveDisplay(estimate) if terminal.live else PlainDisplay(terminal, estimate)


def describe(where: Progress) -> str:
    """ "downloading 1.2 GB of 8.0 GB, 31.0 MB/s"."""
    return where.phase.text + (f", {human_bytes(where.rate)}/s" if where.rate else "")


class PlainDisplay:
    """One line per change of phase of a service, and one every half minute while nothing changes."""

    def __init__(self, terminal: Terminal, estimate: Estimate) -> None:
        self.terminal, self.estimate = terminal, estimate
        self._said: dict[str, tuple[tuple[str, bool], float]] = {}

    def __enter__(self) -> PlainDisplay:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return

    def show(self, progress: Mapping[str, Progress], seconds: float) -> None:
        for service, where in progress.items():
            state = (where.phase.name, where.phase.stalled)
            last, when = self._said.get(service, (None, 0.0))
            if state == last and (where.phase.ready or seconds - when < PLAIN_EVERY_SECONDS):
                continue
            self._said[service] = (state, seconds)
            rest = "" if where.phase.ready else self.estimate.text(progress)
            self.terminal.note(f"[{human_seconds(seconds)}] {service}: {describe(where)}" + (f"; {rest}" if rest else ""))

    def ask_login(self, service: str, link: str) -> None:
        self.terminal.note(login_text(service, link))


class LiveDisplay:
    """One line per service: name, phase, seconds in it; below them what is left. Drawn with rich."""

    def __init__(self, estimate: Estimate) -> None:
        self.estimate = estimate
        self._live: Live | None = None

    def __enter__(self) -> LiveDisplay:
        from rich.console import Console
        from rich.live import Live

        self._live = Live(console=Console(stderr=True, highlight=False), refresh_per_second=4)
        self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)

    def show(self, progress: Mapping[str, Progress], seconds: float) -> None:
        if self._live is not None:
            self._live.update(self._table(progress, seconds))

    def ask_login(self, service: str, link: str) -> None:
        if self._live is not None:
            self._live.console.print(login_text(service, link), markup=False, soft_wrap=True)

    def _table(self, progress: Mapping[str, Progress], seconds: float) -> Table:
        from rich.spinner import Spinner
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        for service, where in progress.items():
            phase = where.phase
            mark = Text("✓", "green") if phase.ready else Text("✗", "red") if STYLES.get(phase.name) == "red" else Spinner("dots")
            style = "yellow" if phase.stalled else STYLES.get(phase.name, "")
            table.add_row(mark, service, Text(describe(where), style), Text("" if phase.ready else human_seconds(where.seconds), "dim"))
        rest = self.estimate.text(progress)
        table.add_row("", Text("total", "dim"), Text(rest, "dim"), Text(human_seconds(seconds), "dim"))
        return table
