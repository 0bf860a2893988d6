"""`qmdctl start`: stopped containers run again."""

from __future__ import annotations

import typer

from qmdctl.commands.common import JsonOption, ServiceArgument, invocation


def start(context: typer.Context, service: ServiceArgument = None, json_output: JsonOption = False) -> None:
    """Start what was stopped, as it was.

    `qmdctl up` also applies changes of .env, and waits until the services are ready.
    """
    from qmdctl.lock import exclusive

    call = invocation(context)
    terminal = call.output(json_output)
    settings = call.settings(need_env=False)
    with exclusive(settings.project.folder, "start"):
        services = call.existing_services(settings, service)
        call.compose(settings).run("--profile", "*", "start", *services)
    terminal.result(
        f"Started: {', '.join(services)}. `qmdctl status` shows when they are ready.", {"status": "started", "services": services}
    )
