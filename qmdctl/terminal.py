"""The one place that prints: results on stdout, everything on the way to them on stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from qmdctl.errors import QmdError

CODES = {"red": "31", "green": "32", "yellow": "33", "dim": "2", "bold": "1"}


class Terminal:
    """`json_output`: results are one JSON document on stdout. `verbose`: tracebacks and what is normally left out."""

    def __init__(self, json_output: bool = False, verbose: bool = False) -> None:
        self.json_output = json_output
        self.verbose = verbose

    @property
    def interactive(self) -> bool:
        """Whether questions can be asked: both ends are a terminal and the output is for people."""
        return sys.stdin.isatty() and sys.stderr.isatty() and not self.json_output

    @property
    def live(self) -> bool:
        """Whether lines may be drawn over: stderr is a terminal that can."""
        return sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not self.json_output

    def result(self, text: str, data: Any) -> None:
        """The command's answer: `data` as JSON with --json, else `text`."""
        if self.json_output:
            sys.stdout.write(json.dumps(data, indent=2, ensure_ascii=False) + "\n")
        elif text:
            sys.stdout.write(text.rstrip("\n") + "\n")
        sys.stdout.flush()

    def line(self, text: str) -> None:
        """One line of the answer where it comes in pieces (logs)."""
        sys.stdout.write(text.rstrip("\n") + "\n")
        sys.stdout.flush()

    def note(self, text: str, style: str = "") -> None:
        """One line on the way, on stderr."""
        sys.stderr.write(self.styled(text, style) + "\n")
        sys.stderr.flush()

    def over(self, text: str) -> None:
        """Draw over the current line of a terminal that can (`live`)."""
        sys.stderr.write(f"\r{text}")
        sys.stderr.flush()

    def echo_command(self, text: str) -> None:
        """The command that is run, so that users can learn and copy it."""
        self.note(f"$ {text}", "dim")

    def error(self, error: QmdError) -> None:
        """What is wrong and how to mend it: on stderr, and as JSON on stdout with --json."""
        if self.json_output:
            sys.stdout.write(json.dumps(error.payload(), indent=2, ensure_ascii=False) + "\n")
            sys.stdout.flush()
        self.note(f"✗ {error.message}", "red")
        if error.fix:
            self.note(f"  → {error.fix}")
        if error.details:
            self.note(error.details.rstrip("\n"), "dim")

    def styled(self, text: str, style: str) -> str:
        """`text` in a colour where stderr is a terminal and NO_COLOR (no-color.org) is not set."""
        if not style or not self.live or os.environ.get("NO_COLOR"):
            return text
        return f"\033[{CODES[style]}m{text}\033[0m"


def table(rows: Iterable[Sequence[str]], header: Sequence[str] = ()) -> str:
    """Columns padded to their widest cell, two spaces between them; the last is left as it is."""
    lines = [list(map(str, row)) for row in ([header] if header else []) + list(rows)]
    if not lines:
        return ""
    widths = [max(len(line[i]) for line in lines if i < len(line)) for i in range(max(map(len, lines)))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)).rstrip() for line in lines)


def human_bytes(count: float) -> str:
    """Decimal units, as download meters and disk makers use: 8.0 GB."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"


def human_seconds(seconds: float) -> str:
    """3 s, 2 min 05 s, 1 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
