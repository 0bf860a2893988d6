"""typer's registration of the verbs; nothing else is imported for `--help`."""

from __future__ import annotations

from typing import Annotated

import typer

from qmdctl.commands import (
    client,
    config,
    doctor,
    down,
    health,
    init,
    keys,
    logs,
    migrate,
    pause,
    pull,
    restart,
    resume,
    start,
    status,
    stop,
    test,
    up,
    version,
)
from qmdctl.commands.common import Invocation

# rich_markup_mode=None: plain help starts three times as fast. Locals in a traceback could show a key.
app = typer.Typer(
    name="qmdctl",
    help="QMD's models on a GPU box: the Docker Compose stack, from start to proof.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 ok, 1 unhealthy, 2 usage or configuration, 3 prerequisite missing, 4 timed out, 130 interrupted.",
)


@app.callback()
def options(
    context: typer.Context,
    project: Annotated[
        str | None,
        typer.Option("--project", "-C", metavar="FOLDER", help="The project's folder (else QMD_HOME, here, or the last one used)."),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show tracebacks.")] = False,
) -> None:
    context.obj.project_option = project
    context.obj.verbose = verbose


# In the order in which a new user meets them.
app.command("init")(init.init)
app.command("doctor")(doctor.doctor)
app.command("pull")(pull.pull)
app.command("up")(up.up)
app.command("status")(status.status)
app.command("health")(health.health)
app.command("start")(start.start)
app.command("stop")(stop.stop)
app.command("restart")(restart.restart)
app.command("pause")(pause.pause)
app.command("resume")(resume.resume)
app.command("down")(down.down)
app.command("logs")(logs.logs)
app.command("test")(test.test)
app.command("client")(client.client)
app.command("config")(config.config)
app.add_typer(keys.app, name="keys")
app.command("migrate")(migrate.migrate)
app.command("version")(version.version)

__all__ = ["Invocation", "app"]
