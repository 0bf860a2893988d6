"""What an upgrade or a rollback does, put down in `.qmdctl/upgrade.json` before each step: a power cut leaves a way on and a way back.

The file is its owner's alone, because it holds .env. It is there only while one is under way or was cut off.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qmdctl.env_file import refused
from qmdctl.errors import ConfigurationError
from qmdctl.lock import FOLDER

FILE, RESERVE = "upgrade.json", "reserve"
RESERVED = 1 << 20  # bytes
VERSION = 1
PLANNED, BEGUN, DONE, UNDONE = "planned", "begun", "done", "undone"


@dataclass
class Step:
    """One step. `facts`: all that doing and undoing it need. `state`: begun means that it may or may not have happened.

    `cut_off`: it was begun before, and may have been half done.
    """

    kind: str
    title: str
    facts: dict[str, Any] = field(default_factory=dict)
    state: str = PLANNED
    cut_off: bool = False

    def payload(self) -> dict[str, str]:
        return {"kind": self.kind, "title": self.title, "state": self.state}


class Journal:
    """`verb` and `title` of what is under way; every change is on the disk when the call returns."""

    def __init__(self, project: Path, verb: str, title: str, steps: list[Step]) -> None:
        self.path = project / FOLDER / FILE
        self.verb, self.title, self.steps = verb, title, steps

    @classmethod
    def read(cls, project: Path) -> Journal | None:
        """What was cut off; None where nothing was. ConfigurationError where the file cannot be used."""
        path = project / FOLDER / FILE
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["version"] != VERSION:
                raise ConfigurationError(f"{path} was written by another version of qmdctl", "use that version to finish or to go back")
            return cls(project, str(data["verb"]), str(data["title"]), [Step(**step) for step in data["steps"]])
        except FileNotFoundError:
            return None
        except OSError as error:
            raise refused(path, error, "read") from None
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(
                f"{path} is damaged ({error or type(error).__name__}): an upgrade was cut off, and what it had done is not known",
                f"look at git status and .env, then: rm {path}, and qmdctl up",
            ) from None

    @property
    def taken(self) -> list[Step]:
        """Steps that going back has to undo, the last first."""
        return [step for step in reversed(self.steps) if step.state in (BEGUN, DONE)]

    def has_begun(self, kind: str) -> bool:
        return any(step.kind == kind and step.state != PLANNED for step in self.steps)

    def mark(self, step: Step, state: str) -> None:
        step.state = state
        self.save()

    def save(self) -> None:
        """ConfigurationError where it cannot be written: no step is taken that is not put down."""
        data = {"version": VERSION, "verb": self.verb, "title": self.title, "steps": [asdict(step) for step in self.steps]}
        beside = self.path.with_name(f"{FILE}.{os.getpid()}")
        try:
            self.path.parent.mkdir(exist_ok=True)
            with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as out:
                json.dump(data, out, indent=1)
                out.flush()
                os.fsync(out.fileno())
            beside.replace(self.path)
        except OSError as error:
            raise refused(self.path, error, "written") from None
        finally:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)

    def reserve(self) -> None:
        """Space on the disk that going back has for .env and the checkout when the disk has filled up meanwhile."""
        with contextlib.suppress(OSError):
            self.path.with_name(RESERVE).write_bytes(os.urandom(RESERVED))

    def release(self) -> None:
        with contextlib.suppress(OSError):
            self.path.with_name(RESERVE).unlink()

    def close(self) -> None:
        """Nothing is under way any more."""
        self.release()
        with contextlib.suppress(OSError):
            self.path.unlink()
