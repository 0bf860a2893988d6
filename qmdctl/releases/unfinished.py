"""An upgrade or a rollback that was cut off: going on with it, or back."""

from __future__ import annotations

import os

from qmdctl.engine import Engine
from qmdctl.errors import QmdError
from qmdctl.project import Project
from qmdctl.releases import child, prepare
from qmdctl.releases.apply import came_back, go_back
from qmdctl.releases.journal import BEGUN, PLANNED, Journal
from qmdctl.releases.snapshot import OFF
from qmdctl.releases.steps import Machine
from qmdctl.terminal import Terminal

FIX = "qmdctl upgrade --undo goes back, qmdctl upgrade --resume goes on"


def told(journal: Journal) -> str:
    """Where it was cut off, in a sentence."""
    at = next((step for step in journal.steps if step.state in (BEGUN, PLANNED)), None)
    return f"It was cut off: {journal.title}{f', at the step “{at.title}”' if at else ', at its very end'}."


def settled(project: Project, terminal: Terminal, verb: str) -> bool:
    """Whether one that was cut off was gone back from; ConfigurationError where nobody can be asked. False where none was.

    The caller ends then: what it would do next is for the code that lies there now, and this process has the other release's.
    """
    journal = Journal.read(project.folder)
    if journal is None:
        return False
    from qmdctl.commands.common import agree

    terminal.note(told(journal), "yellow")
    agree(
        terminal, "Go back to what ran before it", f"An earlier one has to be settled first. {told(journal)}", FIX, "Nothing was changed.",
        default=True,
    )  # fmt: skip
    terminal.result(f"Gone back. {undo(project, journal, terminal)} Now again: {verb}", {"status": "undone", "title": journal.title})
    return True


def undo(project: Project, journal: Journal, terminal: Terminal) -> str:
    """Go back. A sentence on what serves now."""
    child.preload()
    go_back(journal, Machine(project.folder, Engine.connect(), terminal))
    prepare.remove_tree(project.folder)
    return came_back(journal)


def note(project: Project, terminal: Terminal) -> None:
    """For `up`, which holds the lock: a line where one was cut off; nothing in a process that belongs to one."""
    if os.environ.get(OFF):
        return
    try:
        journal = Journal.read(project.folder)
    except QmdError as error:
        terminal.note(f"{error.message}\n  → {error.fix}", "yellow")
        return
    if journal is not None:
        terminal.note(f"{told(journal)}\n  → {FIX}", "yellow")
