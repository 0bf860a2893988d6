"""Taking the steps of a plan, and going back over those of the journal."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterable

from qmdctl.errors import InterruptedByUser, MissingError, QmdError
from qmdctl.native.journal import DONE, UNDONE, Entry
from qmdctl.native.steps import Machine, Step, do, facts_now, serve_entry, undo
from qmdctl.native.tailscale import find_serving
from qmdctl.native.units import Manager


def apply(steps: Iterable[Step], machine: Machine) -> list[Entry]:
    """Take the steps. When one fails, those before it are reversed and QmdError says so: nothing is left halfway.

    After Ctrl-C (InterruptedByUser) or a kill the journal has what was begun; migrating again or going back both work from there.
    """
    taken: list[Entry] = []
    for step in steps:
        entry = machine.journal.begin(step.kind, step.title, facts_now(step, machine))
        taken.append(entry)
        try:
            do(step, machine)
        except QmdError as error:
            raise _gone_back(taken, machine, step, error) from None
        except KeyboardInterrupt:
            raise InterruptedByUser(f"Interrupted: {step.title}.", "qmdctl migrate finishes, qmdctl migrate --undo goes back") from None
        machine.journal.mark(entry, DONE)
    return taken


def go_back(entries: Iterable[Entry], machine: Machine) -> list[str]:
    """Reverse these steps, the last first; sentences on what could not be reversed. QmdError where one fails: the rest is still to do."""
    said = []
    for entry in entries:
        try:
            remark = undo(entry.kind, entry.facts, machine)
        except KeyboardInterrupt:
            raise InterruptedByUser(f"Interrupted while going back: {entry.title}.", "qmdctl migrate --undo does the rest") from None
        if remark:
            said.append(remark)
        machine.journal.mark(entry, UNDONE)
    return said


def _gone_back(taken: list[Entry], machine: Machine, step: Step, error: QmdError) -> QmdError:
    said = (error.details or error.message).strip()
    machine.terminal.note(f"✗ {step.title}: {said}", "red")
    machine.terminal.note("Going back over what was done:")
    try:
        go_back(list(reversed(taken)), machine)
    except InterruptedByUser:
        raise
    except QmdError as second:
        fix = f"mend that, then: qmdctl migrate --undo ({second.fix})" if second.fix else "mend that, then: qmdctl migrate --undo"
        return QmdError(f"{step.title}: {said.splitlines()[0]}; and going back stopped: {second.message}", fix, said)
    fix = error.fix or (sudo_again("migrate") if os.geteuid() != 0 else "mend that, then: qmdctl migrate")
    return QmdError(f"Nothing was taken over: {step.title} failed ({said.splitlines()[0]})", fix, said)


def need_root(commands: Iterable[str], machine: Machine, verb: str) -> None:
    """Have sudo ready where one of the commands needs it: it asks on a terminal. MissingError, before any change, where it is refused."""
    privileged = [command for command in commands if command.startswith("sudo ")]
    if not privileged:
        return
    names = "; ".join(privileged)
    if shutil.which("sudo") is None:
        raise MissingError(f"Root has to do this, and there is no sudo here: {names}", f"as root: {again(verb)}")
    asking = machine.terminal.interactive
    done = machine.runner(["sudo", "-v"] if asking else ["sudo", "-n", "true"], capture=not asking, check=False)
    if not done.ok:
        why = "" if asking else ", and without a terminal sudo cannot ask for a password"
        raise MissingError(f"Root has to do this{why}: {names}", f"run it on a terminal, or: {sudo_again(verb)}; nothing was changed")


def root_commands(entries: Iterable[Entry], machine: Machine) -> list[str]:
    """Of reversing these: one that needs root for each, as far as it is known before."""
    commands = []
    entries = list(entries)
    tailscale = any(entry.kind in ("service", "serve") for entry in entries) and find_serving({}, machine.runner).needs_root
    for entry in entries:
        if tailscale and entry.kind == "service":
            commands.append(shlex.join(["sudo", "tailscale", "serve", "advertise", entry.facts["name"]]))
        elif tailscale and entry.kind == "serve":
            commands.append(shlex.join(["sudo", *serve_entry(entry.facts).command()]))
        elif entry.kind == "unit" and entry.facts["user"] is None and os.geteuid() != 0:
            commands.append(shlex.join(["sudo", *Manager().command("start" if entry.facts["active"] else "enable", entry.facts["name"])]))
    return commands


def again(verb: str) -> str:
    """This program, as root's PATH finds it too."""
    program = shutil.which("qmdctl")
    return f"{program or f'{sys.executable} -m qmdctl'} {verb}"


def sudo_again(verb: str) -> str:
    return f"sudo {again(verb)}"
