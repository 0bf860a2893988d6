"""`qmdctl client`: a QMD client's configuration with the true names, printed or merged into its file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from qmdctl.commands.common import JsonOption, agree, invocation
from qmdctl.commands.test import EmbedUrlOption, GenerateUrlOption

if TYPE_CHECKING:
    from qmdctl.laptop.clients import Client
    from qmdctl.laptop.index_yml import Change
    from qmdctl.laptop.models import Models
    from qmdctl.laptop.names import Names
    from qmdctl.terminal import Terminal

KEY_VARIABLE = "QMD_KEY"  # where none is named and the server wants a key


def client(
    context: typer.Context,
    name: Annotated[
        str, typer.Option("--for", metavar="CLIENT", help="seed (chronologos/qmd), yudshj, picassio, unithejerk, jawk, qmdr or lotl.")
    ] = "seed",
    embed_url: EmbedUrlOption = None,
    generate_url: GenerateUrlOption = None,
    key_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="Environment variable that will hold the API key; the key itself is never written.")
    ] = None,
    write: Annotated[bool, typer.Option("--write", help="Merge it into the seed client's index.yml; a backup stays beside it.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Write without asking.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Print a QMD client's configuration, ready to paste.

    The names are those given, those of the sidecars of a stack that is here, or those that tailscale finds; the models are those served.
    """
    from qmdctl.errors import ConfigurationError
    from qmdctl.laptop import index_yml
    from qmdctl.laptop.box import names_of_box
    from qmdctl.laptop.clients import check_variable, default_models, find_client
    from qmdctl.laptop.key import read_key
    from qmdctl.laptop.models import served_models
    from qmdctl.laptop.names import choose_names
    from qmdctl.laptop.project import found_project

    call = invocation(context)
    terminal = call.output(json_output)
    chosen = find_client(name)
    if write and chosen.format != "yaml":
        raise ConfigurationError(
            f"--write knows the file of seed alone; {chosen.title} is set by its environment", f"qmdctl client --for {name}"
        )
    variable = check_variable(key_env) if key_env else ""
    key = read_key(None)
    here = found_project(call)
    box = names_of_box(here.settings) if here.settings is not None and not (embed_url and generate_url) else {}
    names = choose_names(embed_url, generate_url, here.hostnames, box=box)
    if write and names.twins:
        refuse_twins(names)
    models = served_models(names, default_models(), here.settings, key)
    # QMD_API_KEY is qmdctl's own: it is there, so the server's key is known to be wanted.
    variable = variable or (KEY_VARIABLE if models.key_wanted or key else "")
    there = index_yml.remote_of(index_yml.index_path()) if write else {}
    if there.get("api_key") and not key_env:
        variable = ""  # what the file has stays
    notes = [*([here.problem] if here.problem else []), *names.notes, *_notes(chosen, names, models, variable, key_env)]
    data = {
        "client": name,
        "title": chosen.title,
        "format": chosen.format,
        "names": names.payload(),
        "models": models.payload(),
        "key_variable": variable or None,
        "notes": notes,
    }
    if not write:
        text = chosen.render(names, models, variable)
        for note in notes:
            terminal.note(f"# {note}", "dim")
        terminal.result(text, {**data, "text": text})
        return
    merge_into_file(terminal, wanted_block(chosen, names, models, variable, there), names, models, there, notes, data, yes)


def refuse_twins(names: Names) -> None:
    """ConfigurationError: a name with a number behind it is printed, but stays in a file only where its owner says that it is meant."""
    from qmdctl.errors import ConfigurationError
    from qmdctl.laptop.names import OPTIONS

    urls = {"embed": names.embed, "vllm": names.generation}
    raise ConfigurationError(
        " ".join(names.notes) or "The names that were found have a number behind them.",
        f"if they are meant: qmdctl client --write {' '.join(f'{OPTIONS[service]} {urls[service]}' for service in names.twins)}",
    )


def merge_into_file(
    terminal: Terminal,
    wanted: dict[str, Any],
    names: Names,
    models: Models,
    there: dict[str, Any],
    notes: list[str],
    data: dict[str, Any],
    yes: bool,
) -> None:
    """Show the difference to what is `there`, have it agreed to, write. InterruptedByUser for no."""
    from datetime import datetime

    from qmdctl.laptop import index_yml

    path = index_yml.index_path()
    change = index_yml.propose(path, wanted)
    notes += _warnings(there, models, names)
    for note in notes:
        terminal.note(f"# {note}", "dim")
    if not change.changed:
        terminal.result(f"{path} has it all already; nothing was written.", {**data, "file": str(path), "changed": False, "backup": None})
        return
    terminal.note(change.difference())
    confirm(terminal, change, yes)
    backup = index_yml.write(change, datetime.now())
    kept = f" The old file: {backup}." if backup else ""
    terminal.result(
        f"Written: {path}.{kept} Next: {_next(names)}",
        {**data, "file": str(path), "changed": True, "backup": str(backup) if backup else None},
    )


def _next(names: Names) -> str:
    """The test of the same addresses: those that were given are given again."""
    from qmdctl.laptop.names import OPTIONS

    urls = {"embed": names.embed, "vllm": names.generation}
    given = [f" {OPTIONS[service]} {url}" for service, url in urls.items() if names.origins.get(service) == "given"]
    return "qmdctl test" + "".join(given)


def wanted_block(chosen: Client, names: Names, models: Models, variable: str, there: dict[str, Any]) -> dict[str, Any]:
    """What comes below `remote:`."""
    import yaml

    wanted: dict[str, Any] = yaml.safe_load(chosen.render(names, models, variable))["remote"]
    if not names.generate:
        # An address that an earlier configuration left there would be used before `url`.
        wanted |= {key: names.embed for key in ("embed_url", "generation_url") if key in there}
    return wanted


def confirm(terminal: Terminal, change: Change, yes: bool) -> None:
    """ConfigurationError where nobody can be asked, InterruptedByUser for no."""
    if not yes:
        refusal = f"{change.path} would change as shown above"
        agree(terminal, f"Write {change.path}", refusal, "add --yes to agree", "Nothing was written.", default=True)


def _notes(chosen: Client, names: Names, models: Models, variable: str, key_env: str | None) -> list[str]:
    """Where everything is from, and what this client's user has to know."""
    origins: dict[str, list[str]] = {}
    for role, origin in models.origins.items():
        origins.setdefault(origin, []).append(getattr(models, role))
    told = [f"{chosen.title}: {names.embed} ({names.origins['embed']}), {names.generation} ({names.origins['vllm']})."]
    told.append("Models: " + "; ".join(f"{', '.join(found)} ({origin})" for origin, found in origins.items()) + ".")
    if any(origin != "served" for origin in models.origins.values()):
        told.append("Not every model was told by a server: qmdctl test says whether they can be reached.")
    if variable:
        reason = "" if key_env else " (the server wants a key)"
        told.append(f"The key is taken from the environment{reason}: export {variable}=… where qmd runs.")
    return [*told, *chosen.notes]


def _warnings(there: dict[str, Any], models: Models, names: Names) -> list[str]:
    """What the change means to an index that is there."""
    warnings = []
    old = there.get("models")
    before = old.get("embed") if isinstance(old, dict) else None
    if before and before != models.embed and names.generate:
        warnings.append(f"models.embed changes from {before} to {models.embed}: qmd holds every document for pending then; run qmd embed.")
    key = there.get("api_key")
    if isinstance(key, str) and key and not key.startswith("${"):
        warnings.append('api_key stands in the file in clear; --key-env NAME replaces it by "${NAME}".')
    return warnings
