"""What every verb shares: its options, and how it gets at the project."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from qmdctl.terminal import Terminal

if TYPE_CHECKING:
    from qmdctl.compose import Compose
    from qmdctl.project import Project
    from qmdctl.settings import Settings
    from qmdctl.state import State

ServiceArgument = Annotated[
    list[str] | None, typer.Argument(metavar="SERVICE", help="embed, vllm, ts-embed, ts-vllm, prometheus, …; none named: all.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]

UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


@dataclass
class Invocation:
    """The options before the verb. `ctx.obj` of every command."""

    project_option: str | None = None
    verbose: bool = False
    terminal: Terminal | None = None  # of the verb that runs, for the error at its end

    def output(self, json_output: bool = False) -> Terminal:
        """The terminal of this call."""
        self.terminal = Terminal(json_output, self.verbose)
        return self.terminal

    def state(self) -> State:
        from qmdctl.state import State

        return State()

    def project(self) -> Project:
        """The project; it becomes the last one used, and where that is not evident stderr says which it is."""
        from qmdctl.project import find_project

        state = self.state()
        project = find_project(self.project_option, state)
        if project.found_by == "the last one used":
            (self.terminal or Terminal()).note(f"Project: {project.folder} ({project.found_by})", "dim")
        state.remember_project(project.folder)
        return project

    def settings(self, flags: Mapping[str, str] | None = None, *, need_env: bool = True) -> Settings:
        """What is in force in the project."""
        from qmdctl.settings import load_settings

        return load_settings(self.project(), flags, need_env=need_env)

    def services(self, settings: Settings, named: list[str] | None) -> list[str]:
        """The services named, else all that are configured. ConfigurationError for one that is not there."""
        _refuse_others(named, settings.services)
        return list(named or settings.services)

    def existing_services(self, settings: Settings, named: list[str] | None) -> list[str]:
        """The services named, else all that have a container. QmdError when one named has none, or there is none at all."""
        from qmdctl.engine import Engine
        from qmdctl.errors import QmdError

        _refuse_others(named, settings.every_service)
        there = Engine.connect().containers(settings.name)
        services = named or [name for name in settings.every_service if name in there]
        missing = [name for name in services or settings.services if name not in there]
        if missing:
            raise QmdError(f"There is no container of {', '.join(missing)}", "qmdctl up")
        return services

    def compose(self, settings: Settings) -> Compose:
        from qmdctl.compose import Compose

        return Compose(settings, self.terminal or Terminal())


def _refuse_others(named: list[str] | None, known: list[str]) -> None:
    from qmdctl.errors import ConfigurationError

    for name in named or []:
        if name not in known:
            raise ConfigurationError(f"There is no service {name!r}", f"choose from {', '.join(known)}")


def agree(terminal: Terminal, question: str, refusal: str, fix: str, otherwise: str, *, default: bool) -> None:
    """Ask. ConfigurationError(refusal, fix) where nobody can be asked, InterruptedByUser(otherwise) for no and for Ctrl-C."""
    from qmdctl.errors import ConfigurationError, InterruptedByUser

    if not terminal.interactive:
        raise ConfigurationError(refusal, fix)
    try:
        agreed = typer.confirm(question, default=default, err=True)
    except typer.Abort:
        agreed = False
    if not agreed:
        raise InterruptedByUser(otherwise)


def parse_seconds(timeout: str) -> float:
    """90, 90s, 30m, 2h. ConfigurationError for anything else."""
    from qmdctl.errors import ConfigurationError

    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", timeout.strip().lower())
    if not match or not float(match.group(1)):
        raise ConfigurationError(f"--timeout {timeout!r} is not a time", "write seconds (90), minutes (30m) or hours (2h)")
    return float(match.group(1)) * UNITS[match.group(2)]


def mode_flags(cpu: bool, gpu: bool, project: Project) -> dict[str, str] | None:
    """What --cpu and --gpu set over the project's .env. ConfigurationError for both at once, and for an .env that cannot be read."""
    from qmdctl.errors import ConfigurationError

    if cpu and gpu:
        raise ConfigurationError("--cpu and --gpu exclude each other", "give one of them")
    if cpu:
        from qmdctl.proposal import cpu_flags
        from qmdctl.settings import load_settings

        return cpu_flags(load_settings(project, need_env=False))
    return {"COMPOSE_FILE": "compose.yaml"} if gpu else None


def invocation(context: typer.Context) -> Invocation:
    """The options before the verb."""
    found = context.find_object(Invocation)
    assert found is not None
    return found
