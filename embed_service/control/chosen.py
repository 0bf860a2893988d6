"""The models that a switch chose, kept over restarts of the container.

They count only while the container's own settings are those that the switch replaced: whoever edits these afterwards means what he writes.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import structlog

from embed_service.settings import Settings

__all__ = ["MODEL_SETTINGS", "keep", "models_of", "path", "restore"]

MODEL_SETTINGS = ("embed_model", "embed_revision", "rerank_model", "rerank_revision")

log = structlog.get_logger(__name__)


def path() -> Path:
    """In the home of the service's user, which outlives the container. Raises RuntimeError where there is none."""
    return Path.home() / ".local" / "state" / "embed-service" / "models.json"


def models_of(settings: Settings) -> dict[str, str | None]:
    return {name: getattr(settings, name) for name in MODEL_SETTINGS}


def restore(configured: Settings) -> Settings:
    """`configured`, with the models of an earlier switch where these still count. A file that cannot be used is ignored and logged."""
    try:
        file = path()
        document = json.loads(file.read_text("utf-8"))
        replaced, chosen = _checked(document["replaced"]), _checked(document["chosen"])
    except FileNotFoundError:
        return configured
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        log.warning("the models of an earlier switch cannot be read and are ignored", why=f"{type(error).__name__}: {error}")
        return configured
    if replaced != models_of(configured):
        log.info("the settings name other models than at an earlier switch, which no longer counts", file=str(file))
        return configured
    log.info("serving the models of an earlier switch, not those of the settings", file=str(file), **chosen)
    return configured.model_copy(update=chosen)


def _checked(models: Any) -> dict[str, str | None]:
    if not isinstance(models, dict) or set(models) != set(MODEL_SETTINGS):
        raise ValueError(f"the models are not {', '.join(MODEL_SETTINGS)}")
    for name, value in models.items():
        if not (isinstance(value, str) and value.strip()) and not (value is None and name.endswith("_revision")):
            raise ValueError(f"{name} is {value!r}")
    return dict(models)


def keep(configured: Settings, served: Settings) -> None:
    """Remember that `served` was switched to. Raises OSError or RuntimeError when it cannot be written; a file that was there stays."""
    file = path()
    if models_of(served) == models_of(configured):
        file.unlink(missing_ok=True)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        with unfinished.open("w", encoding="utf-8") as stream:
            json.dump({"replaced": models_of(configured), "chosen": models_of(served)}, stream, indent=2)
            stream.flush()
            os.fsync(stream.fileno())
        unfinished.replace(file)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
