"""`qmdctl keys`: who may call the embed service."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qmdctl.commands.common import JsonOption, invocation

if TYPE_CHECKING:
    from qmdctl.settings import Settings
    from qmdctl.terminal import Terminal

DEFAULT = "./secrets/api_keys"
app = typer.Typer(help="API keys of the embed service: add, list, revoke.", no_args_is_help=True, rich_markup_mode=None)
LOCKS = "Then every request needs a key, and qmd-vllm leads through the embed service, so that it needs one as well."


@app.command()
def add(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose key it is, such as ann-laptop.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Set API_KEYS_FILE in .env, where it is not, without asking.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Make a key and print it, this once: only its digest is stored.

    A service that asks for keys already takes it without a restart; otherwise this says what comes next.
    """
    from qmdctl import api_keys
    from qmdctl.commands.init import make_secrets_folder

    call = invocation(context)
    terminal = call.output(json_output)
    settings = call.settings()
    path, in_force = file_of(settings)
    api_keys.check_name(name)
    switching = not in_force and (yes or agreed(terminal))
    made = not path.exists()
    make_secrets_folder(path.parent)
    key = api_keys.add(path, name, owner_of(settings))
    if switching:
        switch_on(settings, path, name)
    if in_force and not made and service_asks(settings):
        follows = "It works at once."
    elif in_force and not made:
        follows = f"It works after: qmdctl up. {LOCKS}"
    elif in_force or switching:
        follows = f"Next, once: qmdctl up (where it runs with this setting already: qmdctl restart embed). {LOCKS}"
    else:
        follows = f"It does nothing yet: the service asks for no key. Set API_KEYS_FILE={DEFAULT} in .env, then: qmdctl up. {LOCKS}"
    terminal.note(f"The key of {name}, shown this once; clients send it as “Authorization: Bearer …”. {follows}")
    terminal.result(key, {"name": name, "key": key, "file": str(path), "in_force": in_force or switching, "next": follows})


@app.command("list")
def list_keys(context: typer.Context, json_output: JsonOption = False) -> None:
    """Names, days and the starts of the digests."""
    from qmdctl import api_keys
    from qmdctl.terminal import table

    call = invocation(context)
    terminal = call.output(json_output)
    path, in_force = file_of(call.settings(need_env=False))
    file = api_keys.read(path)
    rows = [(key.name or "(unnamed)", key.added or "", f"sha256:{key.shown}…", "in clear" if key.plain else "") for key in file.keys]
    for number in file.unusable:
        terminal.note(f"{path}, line {number}: not sha256:<64 hexadecimal digits>; the service ignores it", "yellow")
    if any(key.plain for key in file.keys):
        terminal.note("What is in clear can be read by who reads the file or a backup of it: add a key, then revoke the old one.", "yellow")
    if in_force and not rows:
        terminal.note(f"{path} has no key: nobody gets in. Make one: qmdctl keys add NAME", "yellow")
    if not in_force:
        terminal.note("API_KEYS_FILE is not set in .env: the embed service asks for no key.", "yellow")
    data = [{"name": key.name, "added": key.added, "digest": key.digest, "plain": key.plain} for key in file.keys]
    text = table(rows, ("name", "added", "digest", "")) if rows else "No keys."
    terminal.result(text, {"file": str(path), "in_force": in_force, "keys": data})


@app.command()
def revoke(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The key's name, or the start of its digest as `list` shows it.")],
    json_output: JsonOption = False,
) -> None:
    """Take a key back. The service refuses it from the next request on."""
    from qmdctl import api_keys

    call = invocation(context)
    terminal = call.output(json_output)
    path, in_force = file_of(call.settings(need_env=False))
    if not api_keys.read(path).keys:
        from qmdctl.errors import ConfigurationError

        raise ConfigurationError(f"{path} has no key", "qmdctl keys add NAME")
    gone, left = api_keys.revoke(path, name.removeprefix("sha256:").rstrip("…"))
    if not left and in_force:
        opening = "to ask for none: empty API_KEYS_FILE in .env, then qmdctl up"
        terminal.note(f"That was the last key: nobody gets in now. Make one: qmdctl keys add NAME; or, {opening}", "yellow")
    what = ", ".join(key.name or f"sha256:{key.shown}…" for key in gone)
    data = {"revoked": [{"name": key.name, "digest": key.digest} for key in gone], "left": left, "file": str(path)}
    terminal.result(f"Revoked: {what}. {left} left.", data)


def file_of(settings: Settings) -> tuple[Path, bool]:
    """The file of keys, and whether API_KEYS_FILE names it. ConfigurationError for the empty file that stands for no secret."""
    from qmdctl.errors import ConfigurationError
    from qmdctl.settings import NO_SECRET

    folder, value = settings.project.folder, settings["API_KEYS_FILE"]
    path = folder / Path(value or DEFAULT).expanduser()
    if path.resolve() == (folder / NO_SECRET).resolve():
        raise ConfigurationError(
            f"API_KEYS_FILE={value} is the file that stands for every secret that is not set", f"set API_KEYS_FILE={DEFAULT} in .env"
        )
    return path, bool(value)


def service_asks(settings: Settings) -> bool:
    """Whether the embed service runs and has a file of keys; no where no engine answers."""
    from qmdctl.engine import Engine
    from qmdctl.errors import QmdError

    try:
        embed = Engine.connect().containers(settings.name).get("embed")
    except QmdError:
        return False
    return bool(embed and embed.running and embed.environment.get("API_KEYS_FILE"))


def agreed(terminal: Terminal) -> bool:
    """Whether API_KEYS_FILE is to be set; no where nobody can be asked. InterruptedByUser for Ctrl-C."""
    from qmdctl.errors import InterruptedByUser

    if not terminal.interactive:
        return False
    terminal.note(f"API_KEYS_FILE is not set in .env: the embed service asks for no key, and this one alone does nothing. {LOCKS}")
    try:
        return typer.confirm(f"Set API_KEYS_FILE={DEFAULT} in .env", default=True, err=True)
    except typer.Abort:
        raise InterruptedByUser("Nothing was written.") from None


def switch_on(settings: Settings, path: Path, name: str) -> None:
    """Set API_KEYS_FILE in .env. Where that fails the new key, which nobody has seen, is taken back."""
    from qmdctl import api_keys, env_file
    from qmdctl.commands.init import sudo_user

    try:
        file = env_file.read(settings.project.env_path).check()
        file.set("API_KEYS_FILE", DEFAULT)
        env_file.write(settings.project.env_path, file.render(), sudo_user())
    except BaseException:
        api_keys.revoke(path, name)
        raise


def owner_of(settings: Settings) -> tuple[int, int]:
    """Whom root gives a new file to: the containers' user, who has to read it; on a rootless engine, where that is 0, who called."""
    from qmdctl.commands.init import owner

    uid, gid = settings["QMD_UID"], settings["QMD_GID"]
    return (int(uid), int(gid)) if uid.isdecimal() and gid.isdecimal() and uid != "0" else owner()
