"""Where a QMD client keeps its index: an SQLite file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from qmdctl.errors import ConfigurationError

OPTION = "--index"
FOLDERS = ("qmd", "lotl")  # below the cache folder; lotl is tanarchytan/qmd


def find_index(given: str | None, environment: Mapping[str, str] = os.environ, here: Path | None = None) -> Path:
    """The file that `qmd` itself would open here, else the one given: a path, or a name as `qmd --index NAME` takes it.

    INDEX_PATH, then `.qmd/` of this folder or of one above it where it has an index.yml, then the user's cache folder.
    ConfigurationError, which lists where it was looked for, when there is none.
    """
    cache = _cache_folder(environment)
    if given:
        named = [cache / folder / f"{given}.sqlite" for folder in FOLDERS] if "/" not in given else []
        places = [Path(given).expanduser(), *named]
    elif environment.get("INDEX_PATH"):
        places = [Path(environment["INDEX_PATH"]).expanduser()]
    else:
        places = [*_project_index(here or Path.cwd()), *(cache / folder / "index.sqlite" for folder in FOLDERS)]
    for place in places:
        if place.exists():
            return place
    looked = ", ".join(str(place) for place in places)
    raise ConfigurationError(
        f"There is no QMD index: not at {looked}",
        f"name its file: qmdctl test --check-index {OPTION} FILE (qmd status prints it); or make one: qmd update, then qmd embed",
    )


def _cache_folder(environment: Mapping[str, str]) -> Path:
    return Path(environment.get("XDG_CACHE_HOME") or Path(environment.get("HOME") or Path.home()) / ".cache")


def _project_index(here: Path) -> list[Path]:
    for folder in (here, *here.parents):
        if any((folder / ".qmd" / name).is_file() for name in ("index.yaml", "index.yml")):
            return [folder / ".qmd" / "index.sqlite"]
    return []
