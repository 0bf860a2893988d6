"""`qmdctl restart`: containers stop and start again."""

from __future__ import annotations

import typer

from qmdctl.commands.common import JsonOption, ServiceArgument, invocation


def restart(context: typer.Context, service: ServiceArgument = None, json_output: JsonOption = False) -> None:
    """Stop and start the services.

    A change of .env needs `qmdctl up` instead.
    """
    from qmdctl.lock import exclusive

    call = invocation(context)
    terminal = call.output(json_output)
    settings = call.settings(need_env=False)
    with exclusive(settings.project.folder, "restart"):
        services = call.existing_services(settings, service)
        call.compose(settings).run("--profile", "*", "restart", *services)
    terminal.result(
        f"Restarted: {', '.join(services)}. `qmdctl status` shows when they are ready.", {"status": "restarted", "services": services}
    )
