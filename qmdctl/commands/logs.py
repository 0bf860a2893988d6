"""`qmdctl logs`: what `docker compose logs` shows, or as JSON lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from qmdctl.commands.common import JsonOption, ServiceArgument, invocation

if TYPE_CHECKING:
    from qmdctl.compose import Compose
    from qmdctl.terminal import Terminal


def logs(
    context: typer.Context,
    service: ServiceArgument = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    since: Annotated[str | None, typer.Option(metavar="TIME", help="From this time on: 10m, 2h, or 2026-01-31T08:00:00.")] = None,
    tail: Annotated[int | None, typer.Option("--tail", "-n", metavar="LINES", min=0, help="Only the last lines of each service.")] = None,
    json_output: JsonOption = False,
) -> None:
    """Show logs, as `docker compose logs` does."""
    import os
    import sys

    from qmdctl.engine import Engine
    from qmdctl.errors import QmdError

    call = invocation(context)
    terminal = call.output(json_output)
    settings = call.settings(need_env=False)
    services = call.services(settings, service) if service else []
    if not Engine.connect().containers(settings.name):
        raise QmdError("The stack has no containers, so there are no logs", "qmdctl up")
    compose = call.compose(settings)
    arguments = ["logs", *(["--follow"] if follow else []), *(["--since", since] if since else [])]
    arguments += ["--tail", str(tail)] if tail is not None else []
    if json_output:
        _json_lines(compose, [*arguments, "--no-color", *services], terminal)
        return
    command = compose.command("--profile", "*", *arguments, *services)
    terminal.echo_command(compose.shown(command))
    sys.stdout.flush()
    os.chdir(settings.project.folder)
    # Compose takes our place: its colours, its Ctrl-C and its exit status are the user's.
    os.execvpe(command[0], command, {**os.environ, **compose.environment()})


def _json_lines(compose: Compose, arguments: list[str], terminal: Terminal) -> None:
    """One object per line: {"container": …, "line": …}."""
    import json
    import re

    from qmdctl.process import stream

    command = compose.command("--profile", "*", *arguments)
    for text in stream(command, cwd=compose.folder, environment=compose.environment()):
        name, _, line = text.partition("|")
        container = re.sub(r"-\d+$", "", name.strip())
        terminal.line(json.dumps({"container": container, "line": line.removeprefix(" ")}, ensure_ascii=False))
