"""`qmdctl rollback`: back to what the history has recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from qmdctl.commands.common import JsonOption, invocation

if TYPE_CHECKING:
    from qmdctl.project import Project
    from qmdctl.terminal import Terminal


def rollback(
    context: typer.Context,
    number: Annotated[
        int | None, typer.Argument(metavar="N", help="A number of `qmdctl history`; none: the healthy one before the present.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and what is missing.")] = False,
    skip_checks: Annotated[bool, typer.Option("--skip-checks", help="Do not check the machine before.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Go back to a recorded start: its files, its .env but for secrets, and its very images.

    First it is checked that all of it still exists. Real requests are sent at the end; where they fail, what ran before comes back.
    """
    from qmdctl.lock import exclusive
    from qmdctl.releases import unfinished

    call = invocation(context)
    terminal = call.output(json_output)
    project = call.project()
    with exclusive(project.folder, "rollback"):
        if not unfinished.settled(project, terminal, "qmdctl rollback"):
            run(project, terminal, number, yes=yes, dry_run=dry_run, skip_checks=skip_checks)


def run(project: Project, terminal: Terminal, number: int | None, *, yes: bool, dry_run: bool, skip_checks: bool) -> None:
    from qmdctl.engine import Engine
    from qmdctl.errors import InterruptedByUser, MissingError
    from qmdctl.releases import images, prepare, rollback, switch
    from qmdctl.releases.checkout import Checkout
    from qmdctl.releases.child import runs_from
    from qmdctl.releases.record import History
    from qmdctl.releases.snapshot import downloaded
    from qmdctl.settings import load_settings

    history = History(project.folder)
    for said in history.notes:
        terminal.note(said, "yellow")
    record = rollback.choose(history, number)
    settings, engine, checkout = load_settings(project), Engine.connect(), Checkout(project.folder)
    switch.need_same_files(engine, settings, terminal)

    def identity(name: str) -> tuple[str, str]:
        return images.identity(engine, name)

    try:
        downloads = downloaded(engine, engine.containers(settings.name)) or None
        missing = rollback.problems(record, history, checkout, identity, downloads)
        if missing:
            first, *more = missing
            details = "\n".join(f"✗ {one.what}\n  → {one.fix}" for one in more)
            raise MissingError(f"Number {record.number} cannot come back: {first.what}", first.fix, details)
        plan = rollback.make_plan(record, rollback.check_texts(history, record), settings, checkout, identity, downloads)
        if plan.target:
            checkout.need_clean()
        title = f"rollback to {record.number}"
        text = "\n".join([f"Rollback to number {record.number} ({record.title}, {record.at}):", *(f"  {line}" for line in plan.lines)])
        data = {"title": title, "to": record.number, "changes": plan.lines}
        if dry_run:
            terminal.result(f"{text}\nAll of it is there. Nothing was changed (--dry-run).", {"status": "planned", "plan": data})
            return
        terminal.note(text)
        switch.ask(terminal, "Go back to it", yes)
        before, excused = switch.found_running(engine, settings, terminal)
        rollback.pull(plan, engine, lambda names: prepare.pull(engine, names, settings, terminal))
        steps = rollback.make_steps(plan, checkout, engine, settings, excused, skip_checks, runs_from(project.folder))
    except KeyboardInterrupt:
        raise InterruptedByUser("Interrupted. Nothing was changed.", "qmdctl rollback") from None
    new = switch.switch(project, engine, terminal, "rollback", title, steps, record.release)
    switch.report(project, terminal, "rollback", title, before, new, {"plan": data})
