"""The switch itself, which upgrade and rollback share: what serves before, the steps, the record of what serves after."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from qmdctl import env_file
from qmdctl.catalog.roles import ROLES, configured
from qmdctl.catalog.served import given, is_switched, look_served
from qmdctl.compose import Compose
from qmdctl.engine import Container, Engine
from qmdctl.errors import ConfigurationError, QmdError
from qmdctl.inside import Running
from qmdctl.process import uninterrupted
from qmdctl.project import Project
from qmdctl.releases import changes, child, images
from qmdctl.releases.apply import WentBack, apply
from qmdctl.releases.checkout import Checkout
from qmdctl.releases.journal import Journal, Step
from qmdctl.releases.prune import KEEP
from qmdctl.releases.record import History, Record, Release
from qmdctl.releases.snapshot import record_start, write, write_failure
from qmdctl.releases.steps import Machine
from qmdctl.settings import Settings, load_settings
from qmdctl.startup.compose_up import changed
from qmdctl.tailnet import SIDECARS
from qmdctl.terminal import Terminal

DONE = {"upgrade": "upgraded", "rollback": "rolled back"}


def ask(terminal: Terminal, question: str, yes: bool) -> None:
    """ConfigurationError where nobody can be asked, InterruptedByUser for no."""
    from qmdctl.commands.common import agree

    refusal = "This changes the stack as shown above, and there is no terminal to ask"
    if not yes:
        agree(terminal, question, refusal, "add --yes to agree", "Nothing was changed.", default=False)


def need_same_files(engine: Engine, settings: Settings, terminal: Terminal) -> None:
    """ConfigurationError where what runs was made from other compose files than .env names (`up --cpu`): going back would not find them.

    Files alone do not tell: Compose leaves a container that other files would not change, with the names of the old ones.
    """
    folder = settings.project.folder
    now = tuple(os.path.relpath(file, folder) for file in settings.files)
    compose = Compose(settings, terminal)
    for name, one in engine.containers(settings.name).items():
        if one.running and one.compose_files not in ((), now) and changed(compose, {name: one.config_hash}):
            there = ", ".join(one.compose_files)
            line = f"COMPOSE_FILE={env_file.quote(os.pathsep.join(one.compose_files))}"
            raise ConfigurationError(
                f"{name} runs from {there}, and .env leads to {', '.join(now)}: what runs now could not be brought back",
                f"put {line} into .env; or bring up what .env says first: qmdctl up",
            )


def found_running(engine: Engine, settings: Settings, terminal: Terminal) -> tuple[Record | None, list[str]]:
    """The record of what serves now, made where there is none; and the sidecars' links that are broken already."""
    project = settings.project.folder
    compose = Compose(settings, terminal)
    there = {name: one for name, one in engine.containers(settings.name).items() if one.running}
    if not there:
        terminal.note("Nothing runs now: where the new one fails, files and .env go back and nothing is started.", "yellow")
        return History(project).current, []
    drifted = is_drifted(settings, compose, there)
    if drifted:
        terminal.note(
            "What runs was started with other settings than .env has now (edited since, or flags): .env is what counts.", "yellow"
        )
    broken = child.broken_links(project, terminal)
    own = [one for one in broken if one.service not in SIDECARS]
    if own:
        terminal.note(
            f"What runs now is not whole ({own[0].name}: {own[0].detail}); where the new one fails, it is what comes back.", "yellow"
        )
    elif not drifted and all(name in there and there[name].ready for name in settings.services):
        record_start(settings, engine, compose, terminal, "found running", 0.0)
    return History(project).current, [one.name for one in broken if one not in own]


def is_drifted(settings: Settings, compose: Compose, there: Mapping[str, Container]) -> bool:
    """Whether what runs is not what .env says. An embed that `models use` switched was made with other models, and serves those of .env."""
    hashes = {name: one.config_hash for name, one in there.items()}
    drifted = changed(compose, hashes)
    if "embed" not in there or not is_switched(compose, there["embed"]):
        return drifted
    if not drifted:  # .env was put back
        return True
    served = look_served(settings, there, Running(compose, echo=False))
    made_with: dict[str, str] = {}
    for role in (ROLES["embed"], ROLES["rerank"]):
        (model, revision), made, now = configured(settings, role), given(there["embed"], role), served[role.name]
        if model != now.id or revision not in (None, now.revision, made[1]):
            return True
        made_with |= {role.key: made[0], role.revision_key: made[1] or ""}
    return changed(compose, hashes, made_with)


def switch(project: Project, engine: Engine, terminal: Terminal, verb: str, title: str, steps: list[Step], to: Release) -> Record | None:
    """Take the steps and record what they led to; None where that could not be written. The errors of `apply`.

    A failure that was gone back from is put into the history as one of the release `to`.
    """
    child.preload()
    journal = Journal(project.folder, verb, title, steps)
    journal.save()
    return carry_out(project, engine, terminal, journal, to)


def resume(project: Project, engine: Engine, terminal: Terminal, journal: Journal) -> Record | None:
    """The same for a journal that was cut off."""
    child.preload()
    commit = next((step.facts["commit"] for step in journal.steps if step.kind == "checkout"), "")
    to = Release(commit=commit) if commit else Checkout(project.folder).release()
    return carry_out(project, engine, terminal, journal, to)


def carry_out(project: Project, engine: Engine, terminal: Terminal, journal: Journal, to: Release) -> Record | None:
    journal.reserve()
    began = time.monotonic()
    try:
        apply(journal, Machine(project.folder, engine, terminal))
    except WentBack as error:
        try:
            write_failure(load_settings(project), journal.title, to, error.message)
        except (OSError, QmdError) as second:
            terminal.note(f"The failure is not in the history: {second}", "yellow")
        raise
    return finish(project, engine, terminal, journal, time.monotonic() - began)


def finish(project: Project, engine: Engine, terminal: Terminal, journal: Journal, seconds: float) -> Record | None:
    """Record what serves now, and end the journal."""
    import yaml

    record = None
    with uninterrupted():  # it serves: a journal that stays would offer to undo it
        try:
            settings = load_settings(project)
            record, _ = write(settings, engine, Compose(settings, terminal), journal.title, seconds, always=True)
        except (OSError, QmdError, yaml.YAMLError) as error:
            terminal.note(f"It serves, but it is not in the history: {error}", "yellow")
        journal.close()
    images.untag(engine, images.NEXT)
    return record


def report(
    project: Project, terminal: Terminal, verb: str, title: str, before: Record | None, record: Record | None, data: dict[str, Any]
) -> None:
    """What serves now, what laptops have to do, and where the history has grown long how it is pruned."""
    lines = [f"Done: {title}. Real requests are answered."]
    moved = record is not None and changes.fingerprint_changed(before, record)
    if record is not None:
        lines[0] += f" It is number {record.number}" + (f"; back: qmdctl rollback {before.number}" if before else "") + "."
    if moved:
        lines.append(changes.REINDEX)
    count = len(History(project.folder).records)
    if count > KEEP:
        terminal.note(f"The history has {count} records, and their images stay: qmdctl history prune --keep {KEEP}")
    numbers = {"from": before.number if before else None, "number": record.number if record else None}
    terminal.result("\n".join(lines), {"status": DONE[verb], **numbers, "fingerprint_changed": moved, **data})
