"""Images by what they are and not by their name: which a service has, tags that keep them, and which setting names them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from qmdctl.compose_files import interpolate, load, references
from qmdctl.engine import Engine, answering
from qmdctl.env_file import EnvFile
from qmdctl.lock import FOLDER
from qmdctl.releases.record import History, Image
from qmdctl.settings import Settings

KEPT = re.compile(r"[a-z0-9][a-z0-9._-]*:release-(\d{4,})")
NEXT = "qmd-embed:next"  # what an upgrade builds beside the one that serves
REMOVE_SECONDS = 600  # the last name of an image of many GB, on a slow disk
NOT_BUILT = "not-built"  # in .qmdctl: names for the embed image that are taken as they are


def identity(engine: Engine, name: str) -> tuple[str, str]:
    """(ID, NAME@sha256:…) of an image by its name or ID; empty where it is not here, the digest also where no registry gave it."""
    from docker.errors import APIError

    with answering():
        try:
            image = engine.client.images.get(name)
        except APIError as error:
            if error.is_client_error():
                return "", ""
            raise
    return str(image.id), next(iter(image.attrs.get("RepoDigests") or []), "")


def tag(engine: Engine, image: str, name: str) -> bool:
    """Give the image another name, which keeps it from `docker image prune`. Whether it was there."""
    from docker.errors import APIError

    repository, _, version = name.rpartition(":")
    if not repository or "/" in version:  # no tag; the colon, where there is one, is a registry's port
        repository, version = name, "latest"
    with answering():
        try:
            return bool(engine.client.api.tag(image, repository, version))
        except APIError as error:
            if error.is_client_error():
                return False
            raise


def untag(engine: Engine, name: str) -> str:
    """Remove a name, and the image where it was its last. Why that was refused; empty where it was not, or it was gone."""
    from docker.errors import APIError, ImageNotFound

    api = engine.client.api
    usual, api.timeout = api.timeout, REMOVE_SECONDS
    with answering():
        try:
            api.remove_image(name)
        except ImageNotFound:
            return ""
        except APIError as error:
            if error.is_client_error():
                return str(error.explanation or error)
            raise
        finally:
            api.timeout = usual
    return ""


def keep(engine: Engine, images: Mapping[str, Image], project: str, number: int) -> dict[str, Image]:
    """Tag each image `<project>-<service>:release-NNNN`, one that several services have once. What could not be tagged has no tag."""
    from dataclasses import replace

    kept: dict[str, str] = {}
    for service, image in images.items():
        if image.id not in kept:
            name = f"{project}-{service}:release-{number:04}"
            kept[image.id] = name if tag(engine, image.id, name) else ""
    return {service: replace(image, kept=kept[image.id]) for service, image in images.items()}


def free_number(engine: Engine, project: str, services: Iterable[str], number: int) -> int:
    """The first number from this one on whose tags no other image has: a second checkout has a history of its own."""
    names = list(services)
    while any(identity(engine, f"{project}-{service}:release-{number:04}")[0] for service in names):
        number += 1
    return number


def image_settings(files: Iterable[Path]) -> dict[str, str]:
    """{service: the setting that names its image}, as in `image: ${EMBED_IMAGE:-qmd-embed:0.1.0}`."""
    found: dict[str, str] = {}
    for file in files:
        for service, fields in (load(file).get("services") or {}).items():
            named = references(str((fields or {}).get("image") or ""))
            if named:
                found[service] = named[0][0]
    return found


def image_names(settings: Settings) -> dict[str, str]:
    """{service: the name of its image} of the services that are started; those that only have a build are left out."""
    found: dict[str, str] = {}
    for file in settings.files:
        for service, fields in (load(file).get("services") or {}).items():
            name = str((fields or {}).get("image") or "")
            if name and service in settings.services:
                found[service] = interpolate(name, lambda key: settings[key])
    return found


def built(settings: Settings) -> set[str]:
    """Services whose image is built here."""
    return {
        service
        for file in settings.files
        for service, fields in (load(file).get("services") or {}).items()
        if (fields or {}).get("build") and service in settings.services
    }


def taken_as_it_is(project: Path, name: str) -> bool:
    """Whether this image is never to be built here: one kept for a rollback, or that `upgrade --image embed=NAME` named."""
    if KEPT.fullmatch(name):
        return True
    try:
        return name in (project / FOLDER / NOT_BUILT).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return False


def unpin(env: EnvFile, history: History, keys: Iterable[str]) -> list[str]:
    """Give settings that name a kept image the value that they had in its record: the checkout's own image again. Those changed."""
    changed = []
    for key in keys:
        value = env.values.get(key, "")
        if not KEPT.fullmatch(value):
            continue
        while match := KEPT.fullmatch(value):
            value = _recorded(history, int(match[1]), key)
        changed.append(key)
        if value:
            env.set(key, value)
        else:
            env.unset(key)
    return changed


def _recorded(history: History, number: int, key: str) -> str:
    from qmdctl.env_file import parse
    from qmdctl.errors import QmdError

    try:
        value = parse(history.texts(history.find(number)).env).values.get(key, "")
    except QmdError:  # pruned, or not to be read
        return ""
    match = KEPT.fullmatch(value)
    return "" if match and int(match[1]) >= number else value
