"""`qmdctl down`: containers and networks go; models and caches stay unless asked."""

from __future__ import annotations

from typing import Annotated

import typer

from qmdctl.commands.common import JsonOption, invocation


def down(
    context: typer.Context,
    volumes: Annotated[bool, typer.Option("--volumes", help="Also remove the volumes: downloaded models and compile caches.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before removing volumes.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Stop the stack and remove its containers.

    Downloaded models and caches stay, unless --volumes.
    """
    from qmdctl.engine import Engine
    from qmdctl.errors import ConfigurationError, InterruptedByUser

    call = invocation(context)
    terminal = call.output(json_output)
    settings = call.settings(need_env=False)
    if volumes and not yes:
        question = "Remove the volumes of downloaded models and compile caches? The next start downloads them again"
        if not terminal.interactive:
            raise ConfigurationError("--volumes removes downloaded models, and there is no terminal to ask", "add --yes")
        try:
            agreed = typer.confirm(question, err=True)
        except typer.Abort:
            agreed = False
        if not agreed:
            raise InterruptedByUser("Nothing was removed.")
    Engine.connect()
    # Every profile: what a changed COMPOSE_PROFILES no longer names is to go as well.
    call.compose(settings).run("--profile", "*", "down", "--remove-orphans", *(["--volumes"] if volumes else []))
    kept = "" if volumes else " Models and caches are kept; `qmdctl up` starts again."
    terminal.result(f"The stack is down.{kept}", {"status": "down", "volumes_removed": volumes})
