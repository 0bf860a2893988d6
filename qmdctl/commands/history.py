"""`qmdctl history`: what ran here, what changed from one to the next, and pruning it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from qmdctl.commands.common import JsonOption, invocation

if TYPE_CHECKING:
    from qmdctl.project import Project
    from qmdctl.releases.record import History, Record
    from qmdctl.terminal import Terminal


def history(
    context: typer.Context,
    what: Annotated[
        str | None, typer.Argument(metavar="[N | prune]", help="One record, compared with the one before; or remove old ones.")
    ] = None,
    keep: Annotated[int | None, typer.Option(metavar="COUNT", min=1, help="With prune: how many of the last records stay.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With prune: do it without asking.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Show what ran here: each start that became healthy, and what changed.

    `qmdctl history 7` shows one record and its difference from the one before, `qmdctl history prune --keep 10` removes all but the last
    ten and the tags that keep their images.
    """
    from qmdctl.errors import ConfigurationError
    from qmdctl.releases.record import History

    call = invocation(context)
    terminal = call.output(json_output)
    project = call.project()
    there = History(project.folder)
    for said in there.notes:
        terminal.note(said, "yellow")
    if what == "prune":
        if keep is None:
            raise ConfigurationError("prune needs to know how many records stay", "qmdctl history prune --keep 10")
        prune(project, terminal, keep, yes)
    elif keep is not None:
        raise ConfigurationError("--keep belongs to prune", f"qmdctl history prune --keep {keep}")
    elif what is None:
        terminal.result(as_list(there), {"records": [payload(there, one) for one in there.records], "notes": there.notes})
    elif what.isdecimal():
        record = there.find(int(what))
        terminal.result(as_details(there, record), {**payload(there, record), "diff": difference(there, record)})
    else:
        raise ConfigurationError(f"{what!r} is no number of the history", "qmdctl history lists them; qmdctl history prune --keep 10")


def payload(there: History, record: Record) -> dict[str, Any]:
    from qmdctl.releases.changes import between

    return {**record.payload(), "current": record == there.current, "changed": between(there.before(record), record)}


def as_list(there: History) -> str:
    from qmdctl.releases.changes import between
    from qmdctl.terminal import table

    if not there.records:
        return "Nothing is recorded yet: each `qmdctl up` that becomes healthy is."
    rows = []
    for record in there.records:
        mark = "*" if record == there.current else "✗" if not record.ready else ""
        changed = "; ".join(between(there.before(record), record))
        rows.append((mark, str(record.number), local(record.at), record.title, record.release.text, record.result, changed[:160]))
    lines = [table(rows, ("", "N", "WHEN", "BY", "RELEASE", "RESULT", "CHANGED"))]
    current = there.current
    if current:
        lines.append(f"* runs now, as far as qmdctl knows: {', '.join(current.models.values()) or 'its models are not known'}")
    return "\n".join([*lines, "One of them: qmdctl history N; back to it: qmdctl rollback N"])


def as_details(there: History, record: Record) -> str:
    from qmdctl.releases.changes import between, short
    from qmdctl.terminal import human_seconds, table

    about = [
        ("number", f"{record.number}{' (current)' if record == there.current else ''}"),
        ("when", f"{local(record.at)}, in {human_seconds(record.seconds)}"),
        ("by", record.title),
        ("release", f"{record.release.text} {record.release.commit}".strip()),
        ("result", record.result),
        *[(f"image of {service}", f"{one.name} {short(one.id)} {one.digest}".rstrip()) for service, one in record.images.items()],
        *record.models.items(),
        ("fingerprint", record.fingerprint or "not known"),
    ]
    before = there.before(record)
    lines = [table(about), f"Against number {before.number}:" if before else "", *(f"  {line}" for line in between(before, record))]
    return "\n".join([line for line in lines if line] + difference(there, record))


def difference(there: History, record: Record) -> list[str]:
    """Of the effective compose files and of .env, as unified diffs; empty where one cannot be read or there is none before."""
    import difflib

    from qmdctl.errors import QmdError

    before = there.before(record)
    if before is None or not record.ready:
        return []
    try:
        old, new = there.texts(before), there.texts(record)
    except QmdError:
        return []
    found: list[str] = []
    for name, pair in (("compose.yaml", (old.compose, new.compose)), ("env", (old.env, new.env))):
        old_name, new_name = (f"{one.number:04}/{name}" for one in (before, record))
        found += difflib.unified_diff(pair[0].splitlines(), pair[1].splitlines(), old_name, new_name, n=1, lineterm="")
    return found


def local(at: str) -> str:
    from datetime import datetime

    try:
        return datetime.fromisoformat(at).astimezone().strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return at


def prune(project: Project, terminal: Terminal, keep: int, yes: bool) -> None:
    from qmdctl.engine import Engine
    from qmdctl.lock import exclusive
    from qmdctl.releases import prune as pruning
    from qmdctl.releases import switch
    from qmdctl.releases.record import History
    from qmdctl.settings import load_settings

    with exclusive(project.folder, "history prune"):
        there = History(project.folder)
        engine = Engine.connect()
        old = pruning.old(there, keep, load_settings(project, need_env=False).env)
        if not old:
            terminal.result("There is nothing to prune.", {"status": "nothing", "pruned": []})
            return
        numbers = ", ".join(str(one.number) for one in old)
        terminal.note(f"These records go, and the tags that keep their images; no rollback leads there then: {numbers}")
        switch.ask(terminal, "Remove them", yes)
        done = pruning.prune(there, old, engine)
    text = [f"Removed: {', '.join(map(str, done.numbers))}.", *(f"  image {name}" for name in done.untagged), *done.notes]
    terminal.result("\n".join(text), {"status": "pruned", "pruned": done.numbers, "untagged": done.untagged, "notes": done.notes})
