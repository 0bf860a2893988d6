"""known.yaml, and a model's config.json where the machine or the hub has it."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from qmdctl.errors import ConfigurationError

Config = dict[str, Any]


@cache
def _known() -> dict[str, Config]:
    table: dict[str, Config] = yaml.safe_load((Path(__file__).parent / "known.yaml").read_text())
    return table


KNOWN: dict[str, Config] = _known()


def read_config(folder: Path) -> Config | None:
    """A folder's config.json; None where there is none that can be read."""
    try:
        value = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def cached_config(model_id: str, cache: Path | None) -> Config | None:
    """From a Hugging Face cache (`…/hub`): the config.json of the newest snapshot."""
    if cache is None:
        return None
    try:
        snapshots = list((cache / f"models--{model_id.replace('/', '--')}" / "snapshots").glob("*/config.json"))
        newest = max(snapshots, key=lambda path: path.stat().st_mtime, default=None)
    except OSError:
        return None
    return read_config(newest.parent) if newest else None


def is_folder(model_id: str) -> bool:
    return model_id.startswith(("/", "./", "../", "~"))


def model_config(model_id: str, cache: Path | None = None) -> Config:
    """The config.json of a folder, of a cached model, or of the table of known ones. No network.

    Raises ConfigurationError where none of them has it.
    """
    found = read_config(Path(model_id).expanduser()) if is_folder(model_id) else cached_config(model_id, cache) or KNOWN.get(model_id)
    if found is None:
        raise ConfigurationError(f"{model_id}: its config.json is not on this machine", "qmdctl pull, or give the memory figures in .env")
    return found
