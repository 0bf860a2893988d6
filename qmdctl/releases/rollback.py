"""Back to a recorded number: whether all of it still exists, the .env that brings it back, and the steps.

What comes back is the checkout, the values of .env that are no secrets, and the very images; `docker compose` and qmdctl see nothing but
these afterwards. The embed image is named by its kept tag, which is never built again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qmdctl import env_file
from qmdctl.engine import Container, Engine
from qmdctl.env_file import EnvFile
from qmdctl.errors import ConfigurationError, MissingError, QmdError
from qmdctl.models.known import is_folder
from qmdctl.redaction import command_lines
from qmdctl.releases import images, redacted, renames
from qmdctl.releases.checkout import Checkout, Target
from qmdctl.releases.journal import Step
from qmdctl.releases.record import History, Image, Record, Texts
from qmdctl.releases.snapshot import KEYS, commit_of
from qmdctl.releases.steps import before_step, checkout_step, env_step, packages_step, up_step, verify_step
from qmdctl.releases.upgrade import LOCK, names_now
from qmdctl.settings import Settings

Downloads = dict[str, dict[str, Any]]
Identity = Callable[[str], tuple[str, str]]


@dataclass(frozen=True)
class Problem:
    """Something that the record needs and that is gone: what, and what brings it."""

    what: str
    fix: str


@dataclass
class Plan:
    """`pulls`: images that are gone here and that their registry has by digest, as {digest: tag they get}."""

    record: Record
    env: str
    target: Target | None
    pulls: dict[str, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)


def choose(history: History, number: int | None) -> Record:
    """The record of that number, else the healthy one before the current. ConfigurationError where there is none to go back to."""
    current = history.current
    if number is None:
        before = history.before(current) if current else None
        if before is None:
            raise ConfigurationError(
                "There is nothing to go back to: the history has no healthy start before the present one", "qmdctl history"
            )
        return before
    record = history.find(number)
    if not record.ready:
        raise ConfigurationError(f"Number {number} never became healthy", "choose another one: qmdctl history")
    return record


def problems(record: Record, history: History, checkout: Checkout, identity: Identity, downloads: Downloads | None) -> list[Problem]:
    """All that is missing. `downloads`: the cache's record; None where nothing that runs could tell."""
    found = []
    try:
        check_texts(history, record)
    except QmdError as error:
        found.append(Problem(error.message, error.fix))
    if record.release.commit and not checkout.is_one:
        found.append(Problem("The project's folder is no git checkout any more", f"clone it again at {record.release.commit[:9]}"))
    elif record.release.commit and not checkout.has(record.release.commit):
        found.append(
            Problem(f"The commit {record.release.commit[:9]} is not in this checkout", f"git fetch origin {record.release.commit}")
        )
    for service, image in record.images.items():
        if not here(image, identity) and not image.digest:
            built = f"qmdctl upgrade {record.release.commit[:9]} builds it again" if record.release.commit else "build it again"
            found.append(Problem(f"The image of {service} is gone ({image.name}, {image.id[:19]}), and no registry has it", built))
        elif not image.key and identity(image.name)[0] not in ("", image.id):
            found.append(Problem(f"{service}: {image.name} is another image by now", f"docker tag {image.id} {image.name}"))
    for key, named in record.models.items():
        model, _, commit = named.partition("@")
        if commit and downloads is not None and not is_folder(model) and not commit_of(downloads, model, commit):
            found.append(
                Problem(
                    f"{key}: {model} at {commit[:9]} is not in the cache",
                    f"docker compose run --rm --no-deps embed download {model}@{commit}",
                )
            )
    return found


def check_texts(history: History, record: Record) -> Texts:
    """The record's files. ConfigurationError where one cannot be used."""
    import yaml

    texts = history.texts(record)
    env_file.parse(texts.env, f"env of number {record.number}").check()
    try:
        services = yaml.safe_load(texts.compose)["services"]
    except (yaml.YAMLError, KeyError, TypeError):
        services = None
    if not isinstance(services, dict):
        raise ConfigurationError(f"The compose file of number {record.number} cannot be read", "choose another number: qmdctl history")
    return texts


def here(image: Image, identity: Identity) -> bool:
    """Whether the very image is on the engine, under whatever name."""
    return bool(identity(image.id)[0])


def make_plan(
    record: Record, texts: Texts, settings: Settings, checkout: Checkout, identity: Identity, downloads: Downloads | None
) -> Plan:
    """What going back changes."""
    now = checkout.release()
    # A branch may have grown since, here or elsewhere: it stays where it is, and the commit alone is checked out.
    moves = record.release.commit not in ("", now.commit)
    target = Target(record.release.tag or record.release.commit[:9], record.release.commit) if moves else None
    env = env_file.parse(settings.env.render())
    renames.back(env, renames.read(settings.project.folder), [*env_file.parse(texts.env).values, *record.secret_keys])
    changed = restore(env, env_file.parse(texts.env), record)
    # The defaults of the files that will be there are known where they are the present ones; a recorded checkout has its own again.
    defaults = None if moves else {key.name: key.default for key in settings.keys_known.values()}
    changed += pin_images(env, record, identity, images.built(settings), defaults)
    changed += pin_models(env, record, downloads)
    plan = Plan(record, env.render(), target)
    plan.pulls = {image.digest: image.kept for image in record.images.values() if image.digest and image.kept and not here(image, identity)}
    plan.lines = [f"files: {now.text} → {record.release.text}"] if target else []
    plan.lines += [f"pulled again by its digest: {digest}" for digest in plan.pulls]
    # A key may be restored and then pinned: what .env has in the end is told.
    plan.lines += [
        f".env: {key}={command_lines.value(key, env.values[key])}" if key in env.values else f".env: {key} is not set any more"
        for key in dict.fromkeys(changed)
    ]
    if record.release.dirty:
        plan.lines.append("its files had been changed by hand when it was recorded: those changes are not in git, and do not come back")
    return plan


def restore(env: EnvFile, recorded: EnvFile, record: Record) -> list[str]:
    """Give .env the recorded values; secrets stay as they are now, and so do comments. The keys that changed."""
    changed = []
    for key, value in recorded.values.items():
        if env.values.get(key) != value and not redacted.secret(key, env.values.get(key, "")):
            env.set(key, value)
            changed.append(key)
    for key, value in list(env.values.items()):
        if key not in recorded.values and key not in record.secret_keys and not redacted.secret(key, value):
            env.unset(key)
            changed.append(key)
    return changed


def pin_images(env: EnvFile, record: Record, identity: Identity, built: set[str], defaults: Mapping[str, str] | None = None) -> list[str]:
    """Have the settings name the very images: by their own name where it still leads there and nothing builds it, else by the kept tag."""
    changed = []
    built_keys = {image.key for service, image in record.images.items() if service in built}  # the exporter's image is embed's
    for image in record.images.values():
        if not image.key or not image.kept:
            continue
        same = identity(image.name)[0] == image.id and not (image.key in built_keys and not images.KEPT.fullmatch(image.name))
        name = image.name if same else image.kept
        named_already = env.values.get(image.key) == name or (
            same and image.key not in env.values and (defaults is None or defaults.get(image.key) == name)
        )
        if not named_already:
            env.set(image.key, name)
            changed.append(image.key)
    return changed


def pin_models(env: EnvFile, record: Record, downloads: Downloads | None) -> list[str]:
    """Name the commit of a model whose branch was downloaded anew since."""
    changed = []
    for key, named in record.models.items():
        model, _, commit = named.partition("@")
        revision = KEYS[key]
        if commit and downloads is not None and commit_of(downloads, model, env.values.get(revision) or "main") not in ("", commit):
            env.set(revision, commit)
            changed.append(revision)
    return changed


def make_steps(
    plan: Plan, checkout: Checkout, engine: Engine, settings: Settings, excused: list[str], skip_checks: bool, own_code: bool
) -> list[Step]:
    """`own_code`: this qmdctl runs from the checkout."""
    project = settings.project.folder
    containers: dict[str, Container] = engine.containers(settings.name)
    running = any(one.running for one in containers.values())
    steps = [before_step(History(project).current, names_now(engine, settings, containers), running)]
    if plan.env != settings.env.render():
        steps.append(env_step(settings, plan.env))
    if plan.target:
        steps.append(checkout_step(checkout, plan.target))
        if own_code and (project / ".venv").exists() and checkout.differs(checkout.commit, plan.target.commit, LOCK):
            steps.append(packages_step())
    return [*steps, up_step(["--skip-checks"] if skip_checks else []), verify_step(excused)]


def pull(plan: Plan, engine: Engine, pull_images: Callable[[list[str]], None]) -> None:
    """Bring the images that are gone here, and keep them under their tags again. MissingError where a registry has them no more."""
    if not plan.pulls:
        return
    try:
        pull_images(list(plan.pulls))
    except QmdError as error:
        raise MissingError(
            f"An image of number {plan.record.number} is gone, and its registry does not give it: {error.message}", error.fix
        ) from None
    for digest, name in plan.pulls.items():
        images.tag(engine, digest, name)
