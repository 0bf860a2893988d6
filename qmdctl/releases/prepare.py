"""What an upgrade readies while the old one serves: the release's files beside the checkout, its images."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from qmdctl import env_file
from qmdctl.compose import Compose
from qmdctl.engine import Engine
from qmdctl.env_file import EnvFile, refused
from qmdctl.errors import MissingError
from qmdctl.lock import FOLDER
from qmdctl.project import Project
from qmdctl.releases import images
from qmdctl.releases.checkout import Checkout
from qmdctl.settings import Settings, load_settings
from qmdctl.terminal import Terminal

TREE = "next"  # in .qmdctl


def tree(checkout: Checkout, commit: str) -> Path:
    """The commit's files in a folder of their own, where nothing that runs sees them. QmdError where they cannot be written."""
    folder = checkout.folder / FOLDER / TREE
    remove_tree(checkout.folder)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise refused(folder, error, "made") from None
    checkout.export(commit, folder)
    return folder


def remove_tree(project: Path) -> None:
    shutil.rmtree(project / FOLDER / TREE, ignore_errors=True)


def settings_there(project: Path, folder: Path, env: EnvFile, flags: Mapping[str, str] | None = None) -> Settings:
    """What is in force with the release's files and this .env. ConfigurationError where the release does not take it.

    Files that .env names by a way from the project are named from the root, and compose files of the owner's are copied.
    """
    there = env_file.parse(env.render())
    for key, value in list(there.values.items()):
        is_file = key.endswith("_FILE") and key != "COMPOSE_FILE" and not value.startswith(("/", "~"))
        if value and (is_file or (key == "HF_CACHE_DIR" and value.startswith("."))):  # else the name of a volume
            there.set(key, str((project / value).resolve()))
    named = there.values.get("COMPOSE_FILE", "")
    for name in named.split(":") if named else ["compose.override.yaml"]:
        if name and (project / name).is_file() and not (folder / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(project / name, folder / name)
    path = folder / ".env"
    path.touch(mode=0o600)
    env_file.write(path, there.render())
    return load_settings(Project(folder, "the release"), flags)


def check_disk(settings: Settings) -> None:
    """MissingError where the images will not fit."""
    from qmdctl.checks import Context, run_checks

    for finding in run_checks(Context(settings), ["disk"]):
        if finding.level == "failure":
            raise MissingError(f"{finding.what} ({finding.why})", finding.fix)


def missing(engine: Engine, settings: Settings, project: Path, again: set[str]) -> list[str]:
    """Images to pull: those that are not here and are not built, and those of `again`."""
    named = images.image_names(settings)
    own = {named[service] for service in images.built(settings)}  # the exporter has the image that is built for embed
    names = [name for name in named.values() if name not in own or images.taken_as_it_is(project, name)]
    return [name for name in dict.fromkeys(names) if name in again or not engine.has_image(name)]


def pull(engine: Engine, names: list[str], settings: Settings, terminal: Terminal) -> None:
    """QmdError with the cause where one cannot be pulled; those before it are kept."""
    from qmdctl.pulling.images import pull_image
    from qmdctl.pulling.progress import Progress

    progress = Progress(terminal)
    try:
        for name in names:
            pull_image(engine, name, progress, settings)
    finally:
        progress.close()


def build(settings: Settings, terminal: Terminal) -> None:
    """Build the embed image from the release's files under a name of its own: `up` then takes every layer from the build's cache."""
    from qmdctl.commands.pull import build

    build(Compose(settings, terminal), settings)
