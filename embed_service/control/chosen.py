"""The models that a switch chose, kept over restarts of one container.

The file outlives the container, the choice does not: it counts on the host that made it (a container's name for itself, which is its id),
and while the settings are those that the switch replaced. Whoever makes the container anew, or edits the settings, means what they say:
a choice that does not count is deleted, so that it cannot come back with settings that are put back.
"""

from __future__ import annotations

import json
import os
import socket
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
        host = str(document["host"])
        replaced, chosen = _checked(document["replaced"]), _checked(document["chosen"])
    except FileNotFoundError:
        return configured
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        log.warning("the models of an earlier switch cannot be read and are ignored", why=f"{type(error).__name__}: {error}")
        return configured
    if host != socket.gethostname():
        return _forget(file, configured, "this container was made after the switch")
    if replaced != models_of(configured):
        return _forget(file, configured, "the settings name other models than at the switch")
    log.info("serving the models of an earlier switch, not those of the settings", file=str(file), **chosen)
    return configured.model_copy(update=chosen)


def _forget(file: Path, configured: Settings, why: str) -> Settings:
    log.info("the models of an earlier switch no longer count", why=why, file=str(file))
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        log.warning("the models of an earlier switch cannot be deleted", why=str(error), file=str(file))
    return configured


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
            document = {"host": socket.gethostname(), "replaced": models_of(configured), "chosen": models_of(served)}
            json.dump(document, stream, indent=2)
            stream.flush()
            os.fsync(stream.fileno())
        unfinished.replace(file)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
