"""The life of `models use`: look, download, switch, prove, and only then `.env`. What fails on the way leaves what was served."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from qmdctl import env_file
from qmdctl.catalog.candidate import Candidate, inspect
from qmdctl.catalog.consequences import Consequences, consequences
from qmdctl.catalog.fits import Memory
from qmdctl.catalog.roles import ROLES, Role, Wanted, writable
from qmdctl.catalog.served import Served
from qmdctl.catalog.switch import Models
from qmdctl.errors import ConfigurationError, MissingError, QmdError
from qmdctl.inside import Inside
from qmdctl.process import uninterrupted
from qmdctl.pulling.progress import Progress
from qmdctl.pulling.weights import follow
from qmdctl.settings import Settings
from qmdctl.terminal import Terminal, human_bytes


class Machine(Protocol):
    """What `use` does outside of this program; a test's does it without an engine."""

    def inside(self, flags: Mapping[str, str]) -> Inside:
        """The embed image's commands, with these settings over those in force."""

    def served(self) -> dict[str, Served]:
        """By role."""

    def memory(self) -> Memory: ...

    def port_stays_open(self, role: Role) -> bool:
        """Whether the running service can change this model by itself."""

    def switch(self, role: Role, before: Models, after: Models, flags: Mapping[str, str]) -> dict[str, Any]:
        """Change what is served and prove it with real requests; what the service told. QmdError after going back."""


@dataclass(frozen=True)
class Change:
    """What is to be changed: `before` and `after` by role; two roles where the reranker is the embedding model and goes with it."""

    wanted: Wanted
    candidate: Candidate
    served: Mapping[str, Served]
    before: dict[Role, tuple[str, str | None]]
    after: dict[Role, tuple[str, str | None]]
    consequences: Consequences
    same: bool  # is served already: .env alone is behind
    notes: list[str] = field(default_factory=list)

    @property
    def flags(self) -> dict[str, str]:
        """The values for .env."""
        values: dict[str, str] = {}
        for role, (model, commit) in self.after.items():
            values |= {role.key: model, role.revision_key: commit or ""}
        return values

    @property
    def running(self) -> bool:
        return self.served[self.wanted.role.name].running


def look(wanted: Wanted, settings: Settings, machine: Machine, terminal: Terminal, *, check_memory: bool = True) -> Change | None:
    """What would change; None where that model is served and configured already. QmdError where it cannot be served."""
    role = wanted.role
    refuse_early(settings, role)
    served = machine.served()
    now = served[role.name]
    if now.state == "paused":
        raise QmdError("The service is paused: its device is lent to something else", "qmdctl resume, then again")
    named = (settings[role.key], settings[role.revision_key] or None)
    if wanted.revision is None and named[0] == wanted.id and (now.id == wanted.id or not now.running):
        return None  # a bare id keeps the commit that it has
    asked = _with_revision(wanted, settings)
    candidate = inspect(machine.inside({}), asked, newest=wanted.revision is not None)
    for sentence in candidate.sentences():
        terminal.note(f"✓ {sentence}")
    same = now.id == wanted.id and (now.revision == candidate.revision or (not now.running and named[1] == candidate.commit))
    if same and named[0] == wanted.id and (named[1] == candidate.commit or (named[1] or "main") in candidate.pinned):
        return None
    after = {role: (wanted.id, candidate.commit)}
    before: dict[Role, tuple[str, str | None]] = {role: (now.id, now.revision)}
    embed, rerank = ROLES["embed"], ROLES["rerank"]
    cosine = settings[embed.key] == settings[rerank.key]
    notes = []
    if role == embed and cosine:
        after[rerank] = after[embed]
        before[rerank] = before[embed]
        notes.append("RERANK_MODEL has the same value, so that reranking is by cosine: it goes with it.")
    if role.name == "generate" and settings["GENERATION_MODEL"] == now.id:
        notes.append(f"GENERATION_MODEL in .env names {now.id}: empty it, or requests through the embed service ask for the old one.")
    if check_memory:
        _refuse_unfit(machine.memory(), after, candidate, terminal)
    fingerprint = served["embed"].fingerprint
    told = consequences(
        role.name,
        fingerprint,
        candidate.fingerprint if role == embed else fingerprint,
        cosine_before=cosine,
        cosine_after=role == embed and cosine,
        same_model=same,
    )
    return Change(wanted, candidate, served, before, after, told, same, notes)


def describe(change: Change, *, open_port: bool) -> list[str]:
    """What will be done, for the question."""
    role, candidate = change.wanted.role, change.candidate
    old, commit = change.before[role]
    lines = [f"{role.key}: {old or 'nothing'}{_short(commit)} → {change.wanted.id}{_short(candidate.revision)}", *change.notes]
    if candidate.missing_bytes:
        meanwhile = ", while the old model serves" if change.running else ""
        lines.append(f"Downloads {human_bytes(candidate.missing_bytes)} first{meanwhile}.")
    if not change.running:
        lines.append(f"{role.service} does not run: .env is written, and `qmdctl up` starts with it.")
    elif change.same:
        lines.append("It is served already: .env gets its commit.")
    elif open_port:
        lines.append(f"{role.service} keeps its port: requests wait while the new model loads.")
    elif role.service == "vllm":
        lines.append("vllm's port is closed while it loads the new model; through the embed service clients get 503 meanwhile.")
    else:
        lines.append("The running embed service cannot switch by itself (an older image): its port is closed for some seconds.")
    return lines + change.consequences.sentences()


def prefetch(change: Change, machine: Machine, progress: Progress) -> None:
    """The files, while the old model serves. QmdError; what is downloaded is kept."""
    name = change.candidate.name
    if change.wanted.folder:
        return
    again = f"qmdctl models use {change.wanted.role.name} {change.wanted.text}"
    try:
        follow(machine.inside(change.flags).lines("download", name), [name], progress, again)
    finally:
        progress.close()


def carry_out(change: Change, settings: Settings, machine: Machine) -> Consequences:
    """Switch where the service runs, then write .env. The consequences, with the fingerprint that the service now tells."""
    told: dict[str, Any] = {}
    if change.running and not change.same:
        told = machine.switch(change.wanted.role, change.before, change.after, change.flags)
    try:
        with uninterrupted():  # it is served already
            write_env(settings, change.flags)
    except ConfigurationError as error:
        if not change.running:
            raise
        values = " and ".join(f"{key}={value}" for key, value in change.flags.items())
        fix = f"{error.fix}; then write {values} into .env"
        message = f"The new model is served, but {error.message}: the next `qmdctl up` would bring the old one back"
        raise ConfigurationError(message, fix) from None
    if change.wanted.role.name == "embed" and told.get("fingerprint"):
        cosine = len(change.after) > 1
        return consequences("embed", change.consequences.before, told["fingerprint"], cosine_before=cosine, cosine_after=cosine)
    return change.consequences


def write_env(settings: Settings, values: Mapping[str, str]) -> None:
    """Into .env as it is by now: a download takes its time. An empty value comments its key out. ConfigurationError."""
    path = settings.project.env_path
    env = env_file.read(path).check()
    for key, value in values.items():
        env.set(key, value) if value else env.unset(key)
    env_file.write(path, env.render())


def refuse_early(settings: Settings, role: Role) -> None:
    """ConfigurationError for what would be found out only after hours of downloading."""
    if role.service not in settings.services:
        raise ConfigurationError(
            f"{role.service} is not among the services of this stack (COMPOSE_PROFILES={settings['COMPOSE_PROFILES']})",
            f"text is generated at GENERATION_URL={settings['GENERATION_URL']}: change the model there"
            if settings["GENERATION_URL"]
            else "add generation to COMPOSE_PROFILES in .env",
        )
    writable(settings, role)
    path = settings.project.env_path.resolve()
    if not os.access(path.parent, os.W_OK):
        raise env_file.refused(path, PermissionError(13, "Permission denied"), "written")


def _with_revision(wanted: Wanted, settings: Settings) -> Wanted:
    """The embedding model as a reranker is taken at the commit at which it embeds."""
    embed = ROLES["embed"]
    if wanted.revision is None and wanted.role.name == "rerank" and wanted.id == settings[embed.key]:
        return Wanted(wanted.role, wanted.id, settings[embed.revision_key] or None)
    return wanted


def _refuse_unfit(memory: Memory, after: Mapping[Role, tuple[str, str | None]], candidate: Candidate, terminal: Terminal) -> None:
    fit = memory.judge({role: model for role, (model, _) in after.items()}, {candidate.wanted.id: candidate.config})
    if fit.fits is None:
        terminal.note(f"? {fit.sentence}", "yellow")
    elif fit.fits:
        terminal.note(f"✓ {fit.sentence}")
    else:
        raise MissingError(
            f"{candidate.wanted.id} does not fit in memory beside the others. {fit.sentence}. Nothing was downloaded or changed.", fit.fix
        )


def _short(commit: str | None) -> str:
    return f"@{commit[:12]}" if commit else ""
