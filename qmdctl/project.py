"""The folder with `compose.yaml` that a command is for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qmdctl.errors import ConfigurationError
from qmdctl.state import State

COMPOSE_FILE = "compose.yaml"


@dataclass(frozen=True)
class Project:
    """`folder` holds compose.yaml; `found_by` says why this one: --project, QMD_HOME, the current folder, the last one used."""

    folder: Path
    found_by: str

    @property
    def env_path(self) -> Path:
        return self.folder / ".env"


def find_project(option: str | None = None, state: State | None = None, environment: Mapping[str, str] = os.environ) -> Project:
    """The project that a command is for: `--project`, QMD_HOME, the current folder or one above it, the last one used.

    ConfigurationError when the folder named has no compose.yaml, or none is found.
    """
    for named, by in ((option, "--project"), (environment.get("QMD_HOME"), "QMD_HOME")):
        if named:
            folder = Path(named).expanduser().resolve()
            if not (folder / COMPOSE_FILE).is_file():
                raise ConfigurationError(f"{by}: {folder} has no {COMPOSE_FILE}", "name the folder that was cloned")
            return Project(folder, by)
    here = Path.cwd()
    for folder in (here, *here.parents):
        if _is_ours(folder):
            return Project(folder, "the current folder")
    last = state.last_project if state else None
    if last and _is_ours(last):
        return Project(last, "the last one used")
    raise ConfigurationError(
        f"No project here: neither {here} nor a folder above it has the stack's {COMPOSE_FILE}",
        "run this in the folder that was cloned, or name it: qmdctl --project FOLDER … (or set QMD_HOME)",
    )


def _is_ours(folder: Path) -> bool:
    """Other projects have a compose.yaml as well: ours stands beside Dockerfile.embed."""
    return (folder / COMPOSE_FILE).is_file() and (folder / "Dockerfile.embed").is_file()
