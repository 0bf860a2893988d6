"""`qmdctl down`: containers and networks go; models, caches and the place on the tailnet stay unless asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from qmdctl.commands.common import JsonOption, agree, invocation

if TYPE_CHECKING:
    from qmdctl.compose import Compose
    from qmdctl.engine import Engine
    from qmdctl.settings import Settings
    from qmdctl.terminal import Terminal

# tailscaled needs a moment before it answers; a logout that does not reach the control server is tried again.
LOGOUT = (
    "tailscaled --statedir=/var/lib/tailscale --tun=userspace-networking >/dev/null 2>&1 & "
    "for i in 1 2 3 4 5 6 7 8; do sleep 1; timeout 10 tailscale logout && exit 0; done; exit 1"
)
MODELS = "the volumes of downloaded models, compile caches and recorded metrics (the next start downloads models again)"
LOGIN = (
    "the sidecars' logins and certificates (the next start needs a key or a login, and new certificates, of which a name gets five a week)"
)


def down(
    context: typer.Context,
    volumes: Annotated[
        bool, typer.Option("--volumes", help="Also remove the volumes: downloaded models, compile caches, metrics.")
    ] = False,
    forget: Annotated[
        bool, typer.Option("--forget", help="Also log the sidecars out of the tailnet and remove their logins and certificates.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before removing volumes.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Stop the stack and remove its containers.

    Downloaded models and caches stay, unless --volumes; the nodes keep their names on the tailnet, unless --forget.
    """
    from qmdctl.engine import Engine
    from qmdctl.lock import exclusive

    call = invocation(context)
    terminal = call.output(json_output)
    settings = call.settings(need_env=False)
    if (volumes or forget) and not yes:
        what = " and ".join([*([MODELS] if volumes else []), *([LOGIN] if forget else [])])
        refusal = f"{'--volumes' if volumes else '--forget'} removes {what}, and there is no terminal to ask"
        agree(terminal, f"Remove {what}?", refusal, "add --yes", "Nothing was removed.", default=False)
    with exclusive(settings.project.folder, "down"):
        engine, compose = Engine.connect(), call.compose(settings)
        left = log_out(engine, compose, settings) if forget else []
        if settings["TAILNET_SERVICE"]:
            terminal.note("The sidecars leave their Services first: 20 s, in which clients go to another box.", "dim")
        # Every profile: what a changed COMPOSE_PROFILES no longer names is to go as well.
        compose.run("--profile", "*", "down", "--remove-orphans")
        removed = remove_volumes(engine, terminal, settings, volumes, forget)
    kept = "" if volumes else " Models and caches are kept; `qmdctl up` starts again."
    terminal.result(f"The stack is down.{kept}", {"status": "down", "volumes_removed": volumes, "forgotten": forget, "removed": removed})
    if forget:
        lost = f"{', '.join(left)} could not be logged out (its output is above). " if left else ""
        machines = "in the admin console (login.tailscale.com/admin/machines)"
        terminal.note(f"{lost}Remove the old machines {machines}: a new one gets another name while they are listed.", "yellow")


def log_out(engine: Engine, compose: Compose, settings: Settings) -> list[str]:
    """The sidecars that have a login and could not be logged out.

    In the running sidecar a logout would lose a race: containerboot sees the node leave and ends, and tailscaled with it, while the
    logout is still on its way. So a container of its own does it, on the volume alone, which also serves where the sidecar does not run.
    """
    from qmdctl.tailnet import SIDECARS

    left = []
    there = [name for name in SIDECARS if name in engine.containers(settings.name)]
    if there:
        compose.run("--profile", "*", "stop", *there)
    for sidecar in SIDECARS:
        if engine.has_volume(f"{settings.name}_{sidecar}"):
            done = compose.run("--profile", "*", "run", "--rm", "--no-deps", "-T", "--entrypoint", "sh", sidecar, "-c", LOGOUT, check=False)
            left += [] if done.ok else [sidecar]
    return left


def remove_volumes(engine: Engine, terminal: Terminal, settings: Settings, models: bool, logins: bool) -> list[str]:
    """Those of the project: the sidecars' are their place on the tailnet, and go with --forget alone."""
    from qmdctl.compose_files import volume_names
    from qmdctl.process import run
    from qmdctl.tailnet import SIDECARS

    there = engine.volumes(settings.name, volume_names(settings.files))
    chosen = [name for volume, name in there.items() if (logins if volume.removesuffix("-run") in SIDECARS else models)]
    if chosen:
        command = ["docker", "volume", "rm", *chosen]
        terminal.echo_command(" ".join(command))
        run(command, capture=False)
    return chosen
