"""What a migration has done, written before each step, in `.migration/` of the project's folder.

It lies there and not with what qmdctl remembers of a user: going back must work with and without sudo. It ignores itself in git.

    journal.json   the steps in the order in which they were begun, each with what its reversal needs
    env.N          .env as it was before step N
    env.N.written  .env as step N wrote it
    env.edited.N   .env as its owner had it when going back replaced it
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qmdctl import env_file
from qmdctl.env_file import refused
from qmdctl.errors import ConfigurationError

FOLDER = ".migration"
VERSION = 1
BEGUN, DONE, UNDONE = "begun", "done", "undone"


@dataclass
class Entry:
    """One step. `state`: begun (it may or may not have happened), done, undone. `facts`: how things were before it."""

    number: int
    kind: str
    title: str
    facts: dict[str, Any] = field(default_factory=dict)
    state: str = BEGUN
    at: str = ""


class Journal:
    """The file, read once; every change is on the disk when the call returns. ConfigurationError where it cannot be read or written."""

    def __init__(self, project: Path, owner: tuple[int, int] | None = None) -> None:
        self.folder = project / FOLDER
        self.path = self.folder / "journal.json"
        self._owner = owner  # who called sudo
        self.entries: list[Entry] = []
        try:
            data = json.loads(self.path.read_text(encoding="utf-8"))
            if data["version"] != VERSION:
                raise ConfigurationError(f"{self.path} was written by another version of qmdctl", "use that version to go back")
            self.entries = [Entry(**entry) for entry in data["steps"]]
        except FileNotFoundError:
            pass
        except OSError as error:
            raise refused(self.path, error, "read") from None
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(
                f"{self.path} is damaged: {error}", f"look at it; what it holds of .env is in {self.folder}/env.*"
            ) from None

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    @property
    def open(self) -> list[Entry]:
        """Steps that going back has to reverse, the last first."""
        return [entry for entry in reversed(self.entries) if entry.state != UNDONE]

    def prepare(self) -> None:
        """Make the folder and write to it, so that nothing has changed yet where that cannot be done. What was undone is forgotten."""
        if not self.open:
            self.entries = []
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            self._give(self.folder)
        except OSError as error:
            raise refused(self.folder, error, "made") from None
        self.write_file(".gitignore", "*\n")
        self.save()

    def begin(self, kind: str, title: str, facts: dict[str, Any]) -> Entry:
        """Put a step down before it is taken."""
        entry = Entry(len(self.entries) + 1, kind, title, facts, BEGUN, datetime.now(UTC).isoformat(timespec="seconds"))
        self.entries.append(entry)
        self.save()
        return entry

    def mark(self, entry: Entry, state: str) -> None:
        entry.state = state
        self.save()

    def save(self) -> None:
        self.write_file(
            "journal.json", json.dumps({"version": VERSION, "steps": [asdict(entry) for entry in self.entries]}, indent=1) + "\n"
        )

    def write_file(self, name: str, text: str) -> None:
        """A file beside the journal, its owner's alone."""
        path = self.folder / name
        if not path.exists():
            try:
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
                self._give(path)
            except OSError as error:
                raise refused(path, error, "written") from None
        env_file.write(path, text)

    def keep(self, name: str, text: str) -> Path:
        """A file NAME.N that no other text is in: what was kept before stays. Its path."""
        number = 1
        while (path := self.folder / f"{name}.{number}").exists() and path.read_bytes() != text.encode():
            number += 1
        self.write_file(path.name, text)
        return path

    def read_file(self, name: str) -> str:
        path = self.folder / name
        try:
            return path.read_bytes().decode("utf-8")
        except OSError as error:
            raise refused(path, error, "read") from None

    def _give(self, path: Path) -> None:
        if self._owner and os.geteuid() == 0:
            os.chown(path, *self._owner)
