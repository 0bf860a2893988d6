"""What a check found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Level = Literal["ok", "warning", "failure", "skipped"]


@dataclass(frozen=True)
class Finding:
    """`what`: the fact; `why`: what follows from it; `fix`: the command or step that mends it.

    `configuration`: the failure is one of .env (exit status 2), not of the machine (3).
    """

    check: str
    level: Level
    what: str
    why: str = ""
    fix: str = ""
    configuration: bool = False

    def payload(self) -> dict[str, Any]:
        return {"check": self.check, "level": self.level, "what": self.what, "why": self.why or None, "fix": self.fix or None}
