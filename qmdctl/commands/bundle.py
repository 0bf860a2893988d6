"""`qmdctl bundle`: one archive for a bug report, without secrets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qmdctl.commands.common import JsonOption, invocation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qmdctl.bundle.parts import Collected, Part
    from qmdctl.project import Project
    from qmdctl.redaction.known import Redactor
    from qmdctl.terminal import Terminal

KEPT = "host, container and model names, folders outside your home, addresses of this machine and its own two names on the tailnet"


def bundle(
    context: typer.Context,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to write it, or into which folder; else the current folder.")
    ] = None,
    lines: Annotated[int, typer.Option(metavar="LINES", min=0, max=100_000, help="Of each container's log, the last.")] = 2000,
    json_output: JsonOption = False,
) -> None:
    """Collect what a bug report needs into one archive.

    Versions, findings, health, configuration, logs, memory. Secrets are replaced; look at it before you send it. Works without an engine:
    what cannot be had is a line in its manifest.
    """
    from qmdctl.bundle.archive import write_archive
    from qmdctl.bundle.secrets import Secrets
    from qmdctl.errors import InterruptedByUser
    from qmdctl.redaction.known import Redactor

    call = invocation(context)
    terminal = call.output(json_output)
    project = call.project()
    path = target(out)
    secrets = Secrets(project.folder)
    secrets.from_project()
    secrets.from_environment()
    try:
        collected = gather(terminal, parts(project, lines), Redactor(secrets.known))
        for one in collected:  # what containers were given may be nowhere else any more
            secrets.from_document(one.part.name, one.content.decode("utf-8", "replace"))
        notes = [f"Not readable here, so that a key in it is known by its shape alone: {problem}" for problem in secrets.unread]
        terminal.note("Taking secrets out …", "dim")
        redactor = Redactor(secrets.known, Path.home())
        members = write_archive(path, collected, notes, redactor)
    except KeyboardInterrupt:
        raise InterruptedByUser("Interrupted: no archive is left. The stack goes on as it was.") from None
    failed = [(redactor.text(one.part.name), redactor.text(one.failed)) for one in collected if one.failed]
    terminal.result(as_text(path, members, failed, notes), payload(path, members, failed, notes))


def target(out: Path | None) -> Path:
    """The archive's path. ConfigurationError for a folder that is not there and a file that is."""
    from datetime import datetime

    from qmdctl.errors import ConfigurationError

    name = f"qmd-bundle-{datetime.now():%Y%m%d-%H%M%S}.tar.gz"
    path = (out or Path()).expanduser()
    path = path / name if path.is_dir() else path
    if not path.parent.is_dir():
        raise ConfigurationError(f"--out: there is no folder {path.parent}", f"mkdir -p {path.parent}")
    if path.exists():
        raise ConfigurationError(f"--out: {path} is there already", "name another file, or a folder")
    return path.absolute()


def parts(project: Project, lines: int) -> Iterator[Part]:
    """What goes into the archive, in the order in which it is collected."""
    from qmdctl.bundle.machine import machine_parts
    from qmdctl.bundle.project import project_parts, verb_parts
    from qmdctl.bundle.stack import engine_parts
    from qmdctl.errors import QmdError
    from qmdctl.settings import load_settings

    yield from verb_parts(project.folder)
    yield from project_parts(project.folder)
    try:
        name = load_settings(project, need_env=False).name
    except QmdError:  # a .env that cannot be used is told by its own part
        name = "qmd"
    yield from engine_parts(name, project.folder, lines)
    yield from machine_parts(project.folder)


def gather(terminal: Terminal, wanted: Iterator[Part], redactor: Redactor) -> list[Collected]:
    """Each part, its name on stderr before it: a file may be called like a key."""
    from qmdctl.bundle.parts import collect

    collected = []
    for part in wanted:
        terminal.note(f"{redactor.text(part.name)} …", "dim")
        collected.append(collect(part))
    return collected


def payload(path: Path, members: list[tuple[str, int]], failed: list[tuple[str, str]], notes: list[str]) -> dict[str, Any]:
    return {
        "archive": str(path),
        "bytes": path.stat().st_size,
        "members": [{"name": name, "bytes": size} for name, size in members],
        "failed": [{"name": name, "why": why} for name, why in failed],
        "notes": notes,
    }


def as_text(path: Path, members: list[tuple[str, int]], failed: list[tuple[str, str]], notes: list[str]) -> str:
    from qmdctl.terminal import human_bytes, table

    return "\n".join(
        [
            table([[name, human_bytes(size)] for name, size in members]),
            *(f"- {name}: {why}" for name, why in failed),
            *(f"! {note}" for note in notes),
            f"{path} ({human_bytes(path.stat().st_size)}): {len(members)} files; {len(failed)} parts could not be had whole.",
            f"Secrets, e-mail addresses and other people's devices are taken out. Kept: {KEPT}.",
            f"Look at it before you send it: tar -xzf {path.name}",
        ]
    )
