"""The last runs: in `.qmdctl/bench.json` of the project on the box, beside qmdctl's own state on a laptop.

A file that is damaged or cannot be written costs the comparison, never the run.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qmdctl.bench.figures import PhaseFigures

FILE = "bench.json"
KEPT = 30
VERSION = 1
Figures = dict[str, float]


@dataclass(frozen=True)
class Change:
    """One figure now and at the last run. `slower` is by how much more time it takes now: 0.1 is ten per cent."""

    name: str
    unit: str
    now: float
    then: float

    @property
    def slower(self) -> float:
        return self.then / self.now - 1 if self.unit.endswith("/s") else self.now / self.then - 1

    def payload(self) -> dict[str, Any]:
        return {"figure": self.name, "unit": self.unit, "now": self.now, "last": self.then, "slower": round(self.slower, 3)}


@dataclass(frozen=True)
class Last:
    """The run before this one at the same addresses, of the same models and the same workload."""

    at: str
    changes: list[Change]

    def payload(self) -> dict[str, Any]:
        return {"at": self.at, "figures": [change.payload() for change in self.changes]}


class History:
    """`problem` says why a comparison was not to be had."""

    def __init__(self, path: Path) -> None:
        self.path, self.problem = path, ""
        self._runs: list[dict[str, Any]] = []
        try:
            data = json.loads(path.read_text("utf-8"))
            if not isinstance(data, dict) or data.get("version") != VERSION or not isinstance(data.get("runs"), list):
                raise ValueError("it is not what this version writes")
            self._runs = [run for run in data["runs"] if isinstance(run, dict)]
        except FileNotFoundError:
            pass
        except (OSError, ValueError, RecursionError) as error:
            self.problem = f"{path} cannot be read ({error}): not compared with the last run, and written anew"

    def last(self, key: dict[str, Any], now: Figures) -> Last | None:
        """None where there is none, or nothing that both have."""
        found = next((run for run in reversed(self._runs) if run.get("key") == key and isinstance(run.get("figures"), dict)), None)
        if found is None:
            return None
        then = {name: value for name, value in found["figures"].items() if isinstance(value, int | float) and value > 0}
        both = [name for name in now if name in then and now[name] > 0]
        changes = [Change(name.partition("|")[0], name.partition("|")[2], now[name], then[name]) for name in both]
        return Last(str(found.get("at", "an earlier day")), changes) if changes else None

    def add(self, key: dict[str, Any], at: str, figures: Figures) -> None:
        """Keep a run, of all the newest `KEPT`. Written beside and renamed: the file is the old one or the new one."""
        runs = [*self._runs, {"key": key, "at": at, "figures": figures}][-KEPT:]
        name = ""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self.path.parent, prefix=f"{FILE}.", delete=False, encoding="utf-8") as new:
                name = new.name
                json.dump({"version": VERSION, "runs": runs}, new, indent=1)
            os.replace(name, self.path)
        except OSError as error:
            if name:
                Path(name).unlink(missing_ok=True)
            self.problem = f"{self.path} cannot be written ({error.strerror or error}): the next run has nothing to compare with"


def key_of(embed_url: str, generate_url: str, models: dict[str, str], workload: dict[str, Any]) -> dict[str, Any]:
    """What must be equal for two runs to be compared."""
    return {"embed_url": embed_url, "generate_url": generate_url, "models": models, "workload": workload}


def figures_kept(phases: list[PhaseFigures]) -> Figures:
    """`name|unit`: value, of each phase what a reader compares."""
    kept: Figures = {}
    for phase in phases:
        title = phase.run.phase.title
        if phase.searches:
            kept[f"{title}: search p50|s"] = round(phase.searches.p50, 4)
            if phase.searches.p95 is not None:
                kept[f"{title}: search p95|s"] = round(phase.searches.p95, 4)
        if phase.indexing:
            kept[f"{title}: indexing|chunks/s"] = round(phase.indexing.chunks_per_second, 4)
    return kept
