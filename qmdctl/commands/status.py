"""`qmdctl status`: what each service does at this moment."""

from __future__ import annotations

import typer

from qmdctl.commands.common import JsonOption, invocation


def status(context: typer.Context, json_output: JsonOption = False) -> None:
    """Show what each service does.

    Exit status 0 when all are ready, 1 otherwise. `qmdctl health` also sends real requests.
    """
    from qmdctl.engine import Engine
    from qmdctl.startup.overview import as_table, look

    call = invocation(context)
    terminal = call.output(json_output)
    settings = call.settings(need_env=False)
    stack = look(Engine.connect(), settings.services, settings)
    ready = all(one.ready for one in stack)
    started = any(one.container for one in stack)
    text = as_table(stack) if started else "The stack is not running.\n  → qmdctl up"
    data = {"ready": ready, "project": str(settings.project.folder), "services": [one.payload() for one in stack]}
    terminal.result(text, data)
    if not ready:
        raise typer.Exit(1)
