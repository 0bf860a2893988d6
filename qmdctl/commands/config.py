"""`qmdctl config`: what is in force and where each value comes from."""

from __future__ import annotations

from typing import Annotated

import typer

from qmdctl.commands.common import JsonOption, invocation


def config(
    context: typer.Context,
    key: Annotated[str | None, typer.Argument(metavar="KEY", help="Only this key: its value alone on stdout.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Also keys that are unset and have no default.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Show what is in force, and from where.

    A value comes from a default of the compose files, from .env, from the environment or from a flag; the later wins. That of a key
    that looks like a secret is not printed.
    """
    import difflib

    from qmdctl.env_file import shown
    from qmdctl.errors import ConfigurationError
    from qmdctl.terminal import table

    call = invocation(context)
    terminal = call.output(json_output)
    settings = call.settings(need_env=False)
    if key:
        if key not in settings:
            near = difflib.get_close_matches(key, settings, n=1)
            raise ConfigurationError(f"{key} is not a key of this stack", f"did you mean {near[0]}?" if near else "qmdctl config --all")
        value = shown(key, settings[key])
        terminal.result(value, {"key": key, "value": value, "origin": settings.origin(key)})
        return
    values = {name: shown(name, settings[name]) for name in settings if everything or settings[name]}
    data = {
        "project": str(settings.project.folder),
        "found_by": settings.project.found_by,
        "files": [str(file) for file in settings.files],
        "values": {
            name: {
                "value": value,
                "origin": settings.origin(name),
                "about": settings.keys_known[name].about if name in settings.keys_known else "",
            }
            for name, value in values.items()
        },
    }
    if not settings.project.env_path.exists():
        terminal.note("There is no .env yet: these are the defaults. Make one with qmdctl init.", "yellow")
    terminal.note(
        f"Project {settings.project.folder} ({settings.project.found_by}); files {', '.join(f.name for f in settings.files)}", "dim"
    )
    terminal.result(table([[n, value, settings.origin(n)] for n, value in values.items()], ["KEY", "VALUE", "FROM"]), data)
