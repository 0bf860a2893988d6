"""What is remembered between commands, in `$XDG_STATE_HOME/qmdctl/state.json`: the last project, and how long its starts took."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any


class State:
    """A small JSON document. A file that is damaged or cannot be written costs the memory, never the command."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or default_path()
        try:
            data = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            data = {}
        self._data: dict[str, Any] = data if isinstance(data, dict) else {}

    @property
    def last_project(self) -> Path | None:
        folder = self._data.get("last_project")
        return Path(folder) if isinstance(folder, str) else None

    def remember_project(self, folder: Path) -> None:
        if self._data.get("last_project") != str(folder):
            self._data["last_project"] = str(folder)
            self._save()

    def last_start(self, key: str) -> dict[str, dict[str, float]]:
        """Seconds per phase of each service at the last complete start of that kind: {"vllm": {"loading": 31.2, …}, …}."""
        start = self._data.get("starts", {}).get(key, {})
        return start if isinstance(start, dict) else {}

    def remember_start(self, key: str, seconds: dict[str, dict[str, float]]) -> None:
        """Keep the services' seconds per phase; services that are not named keep their last."""
        starts = self._data.setdefault("starts", {})
        starts[key] = {**self.last_start(key), **seconds}
        self._save()

    def _save(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Written beside and renamed: two commands at once, or a full disk, leave the old file or the new one.
            with tempfile.NamedTemporaryFile("w", dir=self.path.parent, delete=False, encoding="utf-8") as new:
                json.dump(self._data, new, indent=1)
            os.replace(new.name, self.path)
        except OSError:
            return


def default_path() -> Path:
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local/state")
    return Path(base) / "qmdctl" / "state.json"
