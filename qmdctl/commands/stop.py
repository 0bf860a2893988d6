"""`qmdctl stop`: containers stop and stay."""

from __future__ import annotations

import typer

from qmdctl.commands.common import JsonOption, ServiceArgument, invocation


def stop(context: typer.Context, service: ServiceArgument = None, json_output: JsonOption = False) -> None:
    """Stop the services; containers stay.

    Requests in flight are answered first.
    """
    from qmdctl.lock import exclusive

    call = invocation(context)
    terminal = call.output(json_output)
    settings = call.settings(need_env=False)
    with exclusive(settings.project.folder, "stop"):
        services = call.existing_services(settings, service)
        call.compose(settings).run("--profile", "*", "stop", *services)
    terminal.result(f"Stopped: {', '.join(services)}. `qmdctl start` starts them again.", {"status": "stopped", "services": services})
