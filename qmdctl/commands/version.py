"""`qmdctl version`: this program, the engine, Compose, and what the stack's containers run."""

from __future__ import annotations

from typing import Any

import typer

from qmdctl.commands.common import JsonOption, invocation


def version(context: typer.Context, json_output: JsonOption = False) -> None:
    """Show versions: qmdctl, Docker, images."""
    from qmdctl import __version__
    from qmdctl.engine import Engine
    from qmdctl.errors import QmdError
    from qmdctl.process import run
    from qmdctl.terminal import table

    call = invocation(context)
    terminal = call.output(json_output)
    data: dict[str, Any] = {"qmdctl": __version__, "project": None, "docker": None, "compose": None, "images": {}}
    notes = []
    try:
        settings = call.settings(need_env=False)
        data["project"] = str(settings.project.folder)
    except QmdError as error:
        settings = None
        notes.append(error.message)
    try:
        engine = Engine.connect()
        data["docker"] = engine.info()["ServerVersion"]
        if settings:
            data["images"] = {name: c.image for name, c in engine.containers(settings.name).items()}
    except QmdError as error:
        notes.append(error.message)
    try:
        data["compose"] = run(["docker", "compose", "version", "--short"], timeout_seconds=10).stdout.strip()
    except QmdError as error:
        notes.append(error.message)
    rows = [[name, str(data[name] or "not found")] for name in ("qmdctl", "docker", "compose", "project")]
    rows += [[f"image of {name}", image] for name, image in data["images"].items()]
    for note in notes:
        terminal.note(note, "dim")
    terminal.result(table(rows), data)
