"""What runs now, as a record: containers and their images, this project's release, models, the effective compose file, .env."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import httpx

from qmdctl import env_file
from qmdctl.compose import Compose
from qmdctl.control import as_of_now
from qmdctl.engine import Container, Engine, answering
from qmdctl.errors import QmdError
from qmdctl.exchange import exchange
from qmdctl.process import ProcessError
from qmdctl.releases import images, redacted
from qmdctl.releases.checkout import Checkout
from qmdctl.releases.record import FAILED, History, Image, Record, Release, Texts
from qmdctl.settings import Settings
from qmdctl.terminal import Terminal

DOWNLOADED = "/models/hub/embed-service-revisions.json"  # in the containers: the record of complete downloads
OFF = "QMDCTL_NO_RECORD"  # in the environment of an `up` whose caller records it, or goes back
HEALTH_SECONDS = 5.0
KEYS = {"EMBED_MODEL": "EMBED_REVISION", "RERANK_MODEL": "RERANK_REVISION", "VLLM_MODEL": "VLLM_REVISION"}
IN_CONTAINER = {"VLLM_MODEL": ("vllm", "QMD_MODEL", "QMD_REVISION")}


def record_start(settings: Settings, engine: Engine, compose: Compose, terminal: Terminal, title: str, seconds: float) -> Record | None:
    """Record a start that became healthy, unless nothing is new. A record that cannot be written costs the record, never the start."""
    import yaml

    if os.environ.get(OFF):
        return None
    try:
        if not all(_healthy(engine, one) for one in engine.containers(settings.name).values() if one.running):
            return None  # `up` of some services: another one is on its way still
        record, new = write(settings, engine, compose, title, seconds)
    except (OSError, QmdError, yaml.YAMLError) as error:
        said = error.message if isinstance(error, QmdError) else getattr(error, "strerror", None) or str(error)
        terminal.note(f"This start is not in the history: {said}. The stack runs all the same.", "yellow")
        return None
    if new:
        terminal.note(f"Recorded as number {record.number} (qmdctl history).", "dim")
    return record


def _healthy(engine: Engine, container: Container) -> bool:
    """As it is now: Docker's own word is half a minute old, and a switch may lie between."""
    return container.health in ("", "healthy") or as_of_now(engine, container).probe.get("status") == "ok"


def write(settings: Settings, engine: Engine, compose: Compose, title: str, seconds: float, *, always: bool = False) -> tuple[Record, bool]:
    """The record of what runs, and whether it is a new one. OSError, QmdError or yaml.YAMLError where it cannot be made."""
    history = History(settings.project.folder)
    record, texts = look(settings, engine, compose)
    current = history.current
    if current and not always and _same(history, current, record, texts):
        return current, False
    number = images.free_number(engine, settings.name, record.images, history.next_number)
    kept = images.keep(engine, record.images, settings.name, number)
    record = replace(record, number=number, title=title, seconds=round(seconds, 1), images=kept)
    try:
        history.write(record, texts)
    except OSError:
        for image in kept.values():
            images.untag(engine, image.kept)
        raise
    return record, True


def write_failure(settings: Settings, title: str, release: Release, note: str) -> None:
    """An attempt that did not become healthy, for whoever reads the history later."""
    history = History(settings.project.folder)
    history.write(Record(history.next_number, now(), title, release, [], {}, {}, result=FAILED, note=note), Texts())


def look(settings: Settings, engine: Engine, compose: Compose) -> tuple[Record, Texts]:
    """What runs, without a number or a kept tag."""
    containers = engine.containers(settings.name)
    keys = images.image_settings(settings.files)
    found = {}
    for service, container in containers.items():
        if container.running:
            with answering():
                image = str(engine.client.api.inspect_container(container.id)["Image"])
            _, digest = images.identity(engine, image)
            found[service] = Image(container.image, image, digest, keys.get(service, ""))
    models, fingerprint = served(settings, engine, containers)
    env, secrets = _env(settings)
    release = Checkout(settings.project.folder).release()
    record = Record(0, now(), "", release, list(found), found, models, fingerprint, secret_keys=secrets)
    return record, Texts(effective(compose), env)


def effective(compose: Compose) -> str:
    """`docker compose config` without secrets."""
    try:
        done = compose.run("config", capture=True, echo=False)
    except ProcessError as error:
        said = error.completed.stderr.strip().splitlines()
        raise QmdError(f"Compose refuses the configuration: {said[-1] if said else error.message}", "qmdctl config") from None
    return redacted.compose_text(done.stdout)


def served(settings: Settings, engine: Engine, containers: dict[str, Container]) -> tuple[dict[str, str], str]:
    """({setting: MODEL@COMMIT}, fingerprint of the embeddings): what /health tells, else what the container was given."""
    body = _health(containers.get("embed"))
    told = body.get("models") if isinstance(body.get("models"), dict) else {}
    revisions = body.get("revisions") if isinstance(body.get("revisions"), dict) else {}
    downloads = downloaded(engine, containers)
    found = {}
    for key, revision_key in KEYS.items():
        service, variable, revision = IN_CONTAINER.get(key, ("embed", key, revision_key))
        container = containers.get(service)
        if container is None or not container.running:
            continue
        role = {"EMBED_MODEL": "embed", "RERANK_MODEL": "rerank"}.get(key, "")
        name = str((told or {}).get(role) or container.environment.get(variable, ""))
        # What `models use` switched to is in no setting of the container's.
        commit = (revisions or {}).get(role) or commit_of(downloads, name, container.environment.get(revision) or "main")
        if name:
            found[key] = f"{name}@{commit}" if commit else name
    fingerprint = body.get("fingerprint")
    return found, fingerprint if isinstance(fingerprint, str) else ""


def downloaded(engine: Engine, containers: dict[str, Container]) -> dict[str, dict[str, Any]]:
    """{model: {revision: {"commit": …, "files": …}}} of the cache, read in a container that has it; empty where none runs."""
    for service in ("embed", "vllm"):
        container = containers.get(service)
        if container is not None and container.running:
            try:
                data = json.loads(engine.execute(container, ["cat", DOWNLOADED]))
            except ValueError:
                continue
            if isinstance(data, dict):
                return {model: entries for model, entries in data.items() if isinstance(entries, dict)}
    return {}


def commit_of(downloads: dict[str, dict[str, Any]], model: str, revision: str) -> str:
    """The commit that a branch, tag or commit of the model was downloaded at; empty where it was not."""
    entries = downloads.get(model, {})
    entry = entries.get(revision)
    commits = [str(one.get("commit")) for one in entries.values() if isinstance(one, dict)]
    if isinstance(entry, dict):
        return str(entry.get("commit", ""))
    return revision if revision in commits else ""


def _health(container: Container | None) -> dict[str, Any]:
    port = next(iter(container.ports.values()), 0) if container is not None and container.running else 0
    if not port:
        return {}
    with httpx.Client(trust_env=False) as client:
        try:
            body = exchange(client, "GET", f"http://127.0.0.1:{port}/health", HEALTH_SECONDS).json()
        except (httpx.HTTPError, ValueError):
            return {}
    return body if isinstance(body, dict) else {}


def _env(settings: Settings) -> tuple[str, list[str]]:
    """.env, with what the command's flags and environment had in force beside it: going back must not need them again."""
    text, secrets = redacted.env_text(settings.env)
    given = {
        key: value.value
        for key, value in settings.values_in_force.items()
        if value.origin in ("flag", "environment") and not redacted.secret(key, value.value)
    }
    if given:
        file = env_file.parse(text, "env")
        for key, value in given.items():
            file.set(key, value)
        text = file.render()
    return text, secrets


def _same(history: History, current: Record, record: Record, texts: Texts) -> bool:
    ids = [{service: image.id for service, image in one.images.items()} for one in (current, record)]
    if ids[0] != ids[1] or (current.release, current.models, current.fingerprint) != (record.release, record.models, record.fingerprint):
        return False
    try:
        return history.texts(current).compose == texts.compose
    except QmdError:
        return False


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
