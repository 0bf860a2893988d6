"""`qmdctl models`: what is served, what lies in the cache, what would fit; `use` changes one, `prune` frees the cache."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qmdctl.commands.common import JsonOption, agree, invocation, parse_seconds

if TYPE_CHECKING:
    from qmdctl.catalog.cached import Cache
    from qmdctl.catalog.consequences import Consequences
    from qmdctl.catalog.machine import StackMachine
    from qmdctl.catalog.use import Change
    from qmdctl.commands.common import Invocation
    from qmdctl.settings import Settings
    from qmdctl.terminal import Terminal

app = typer.Typer(help="The models: what is served, cached and would fit; change one; free the cache.", rich_markup_mode=None)
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@app.callback(invoke_without_command=True)
def models(context: typer.Context, json_output: JsonOption = False) -> None:
    """Without a command: the same as `list`."""
    if context.invoked_subcommand is None:
        list_models(context, json_output)


@app.command("list")
def list_models(context: typer.Context, json_output: JsonOption = False) -> None:
    """Show what is served, what lies in the cache with its size, and which known models would fit in memory."""
    from qmdctl.catalog import listing
    from qmdctl.catalog.fits import known_fits
    from qmdctl.catalog.roles import ROLES
    from qmdctl.errors import QmdError

    call = invocation(context)
    terminal = call.output(json_output)
    settings = call.settings(need_env=False)
    machine = make_machine(call, settings, terminal)
    served = machine.served()
    cache, needs = None, []
    try:
        cache = read_cache_if_there(machine, settings)
        needs = machine.needs() if cache else []
    except QmdError as error:
        terminal.note(f"The cache was not looked at: {error.message}", "yellow")
    if cache is None:
        terminal.note("There is no cache yet, or no embed image to look at it with: qmdctl pull, or qmdctl up.", "yellow")
    roles = [role.name for role in ROLES.values() if role.service in settings.services]
    fits = known_fits(machine.memory(), roles)
    notes = listing.differences(settings, served)
    text = listing.as_text(served, cache, needs, fits)
    for note in notes:
        terminal.note(note, "yellow")
    terminal.result(text, listing.payload(served, cache, needs, fits, notes))


@app.command()
def use(
    context: typer.Context,
    role: Annotated[str, typer.Argument(metavar="embed|rerank|generate", help="Which model is to be another one.")],
    model: Annotated[str, typer.Argument(metavar="ID[@REVISION]", help="As its page at the hub names it; @main takes the newest commit.")],
    yes: YesOption = False,
    skip_checks: Annotated[bool, typer.Option("--skip-checks", help="Do not check whether it fits in memory.")] = False,
    timeout: Annotated[str, typer.Option(metavar="TIME", help="Go back when the new model is not ready after 90, 30m or 2h.")] = "30m",
    json_output: JsonOption = False,
) -> None:
    """Change a model while the stack serves.

    Looked at first, before any download: that it exists and is open, its architecture and task, its size, whether disk and memory hold
    it. Downloaded while the old model serves; proven with real requests; only then written to .env. What fails leaves the old one.
    """
    from qmdctl.catalog import use as change_of
    from qmdctl.catalog.roles import parse
    from qmdctl.lock import exclusive
    from qmdctl.releases.snapshot import record_start

    call = invocation(context)
    terminal = call.output(json_output)
    wanted, limit = parse(role, model), parse_seconds(timeout)
    settings = call.settings()
    again = f"qmdctl models use {role} {model}"
    with exclusive(settings.project.folder, f"models use {role}"):
        machine = make_machine(call, settings, terminal, limit)
        with interruptible(machine, "Interrupted. Nothing was changed."):
            change = change_of.look(wanted, settings, machine, terminal, check_memory=not skip_checks)
        if change is None:
            report_unchanged(wanted.id, role, machine, terminal)
            return
        open_port = change.running and machine.port_stays_open(change.wanted.role)
        for line in change_of.describe(change, open_port=open_port):
            terminal.note(line)
        if not yes:
            refusal = "This changes what is served, and there is no terminal to ask"
            agree(terminal, "Change it?", refusal, "add --yes", "Nothing was changed.", default=True)
        fetch(change, machine, terminal, again)
        clock = time.monotonic()
        effect = change_of.carry_out(change, settings, machine)
        if change.running:
            now = call.settings()  # with the .env that was written
            title = f"models use {role} {wanted.text}"
            record_start(now, machine.engine, call.compose(now), terminal, title, time.monotonic() - clock)
    report(change, effect, terminal)


@app.command()
def prune(
    context: typer.Context,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="ID[@COMMIT]", help="Only this one (may be given again); else all that is not needed."),
    ] = None,
    yes: YesOption = False,
    json_output: JsonOption = False,
) -> None:
    """Free the cache of models that are neither served, nor set in .env, nor needed for a rollback.

    Shows what would go, with its size, and asks. In a cache that other programs share (HF_CACHE_DIR) only what this stack downloaded is
    proposed; others go when --model names them.
    """
    from qmdctl.catalog import prune as pruning_of
    from qmdctl.errors import QmdError
    from qmdctl.lock import exclusive
    from qmdctl.models.known import is_folder
    from qmdctl.terminal import human_bytes

    call = invocation(context)
    terminal = call.output(json_output)
    settings = call.settings()
    with exclusive(settings.project.folder, "models prune"):
        machine = make_machine(call, settings, terminal)
        with interruptible(machine, "Interrupted. Nothing was removed."):
            pruning = pruning_of.plan(machine.cache, machine.needs(), model or [], shared=is_folder(settings["HF_CACHE_DIR"]))
        if pruning.others:
            terminal.note(
                f"Not this stack's, left alone: {', '.join(pruning.others)}. They go with --model ID, where no other program needs them.",
                "dim",
            )
        if pruning.empty:
            terminal.result(pruning.reasons(), {"status": "nothing", "freed_bytes": 0, **pruning.payload()})
            return
        terminal.note(pruning.as_table())
        if not yes:
            question = f"Remove {human_bytes(pruning.bytes)}? A later use downloads it again."
            agree(
                terminal,
                question,
                "This removes models, and there is no terminal to ask",
                "add --yes",
                "Nothing was removed.",
                default=False,
            )
        with interruptible(machine, "Interrupted. What was not removed yet is still there, and nothing counts as complete that is not."):
            freed, errors = pruning_of.carry_out(pruning, machine.inside({}))
    if errors:
        first, *more = errors
        raise QmdError(f"{human_bytes(freed)} were freed. {first}", "", "\n".join(f"  {text}" for text in more))
    terminal.result(f"{human_bytes(freed)} freed.", {"status": "pruned", "freed_bytes": freed, **pruning.payload()})


def make_machine(call: Invocation, settings: Settings, terminal: Terminal, limit: float | None = None) -> StackMachine:
    from qmdctl.catalog.machine import StackMachine
    from qmdctl.commands.health import api_key
    from qmdctl.engine import Engine

    return StackMachine(settings, Engine.connect(), terminal, lambda: api_key(settings, None), limit)


def read_cache_if_there(machine: StackMachine, settings: Settings) -> Cache | None:
    """None where there is no embed image or no cache yet: a look builds nothing and makes no volume."""
    from qmdctl.models.known import is_folder

    embed = machine.containers.get("embed")
    if embed is not None and embed.running:
        return machine.cache
    there = is_folder(settings["HF_CACHE_DIR"]) or machine.engine.has_volume(f"{settings.name}_models")
    return machine.cache if there and machine.engine.has_image(settings["EMBED_IMAGE"]) else None


@contextlib.contextmanager
def interruptible(machine: StackMachine, message: str) -> Any:
    """Ctrl-C ends the container that was asked, and says what it means."""
    from qmdctl.errors import InterruptedByUser
    from qmdctl.inside import OneOff

    try:
        yield
    except KeyboardInterrupt:
        OneOff.stop(machine.engine)
        raise InterruptedByUser(message) from None


def fetch(change: Change, machine: StackMachine, terminal: Terminal, again: str) -> None:
    from qmdctl.catalog.use import prefetch
    from qmdctl.errors import InterruptedByUser
    from qmdctl.inside import OneOff
    from qmdctl.pulling.progress import Progress

    try:
        prefetch(change, machine, Progress(terminal))
    except KeyboardInterrupt:
        OneOff.stop(machine.engine)
        message = "Interrupted. What is downloaded is kept, and the old model goes on serving."
        raise InterruptedByUser(message, f"{again} goes on") from None


def report_unchanged(model: str, role: str, machine: StackMachine, terminal: Terminal) -> None:
    now = machine.served()[role]
    where = "is served already" if now.running else "is set in .env already; qmdctl up starts with it"
    data = {"status": "unchanged", "role": role, "model": model, "revision": now.revision, "running": now.running}
    terminal.result(f"{model} {where}: nothing to do.", data)


def report(change: Change, effect: Consequences, terminal: Terminal) -> None:
    role, (model, commit) = change.wanted.role, change.after[change.wanted.role]
    old, old_commit = change.before[role]
    named = f"{model}{f'@{commit[:12]}' if commit else ''}"
    first = f"{role.name}: {named} is served, and .env has it." if change.running else f"{role.name}: .env has {named}. Start it: qmdctl up"
    data = {
        "status": "switched" if change.running else "written",
        "role": role.name,
        "before": {"model": old or None, "revision": old_commit},
        "after": {"model": model, "revision": commit},
        "downloaded_bytes": change.candidate.missing_bytes,
        "env": change.flags,
        **effect.payload(),
    }
    terminal.result("\n".join([first, *effect.sentences()]), data)
