"""Taking the steps of a journal, and going back over them."""

from __future__ import annotations

from qmdctl.errors import ConfigurationError, InterruptedByUser, QmdError
from qmdctl.releases.journal import BEGUN, DONE, UNDONE, Journal, Step
from qmdctl.releases.steps import Machine, do, undo


class WentBack(QmdError):
    """A switch that failed and was undone: what ran before runs again."""


def apply(journal: Journal, machine: Machine) -> None:
    """Take the steps that are not done. When one fails, or at Ctrl-C, all are undone: WentBack or InterruptedByUser says so.

    The journal stays only where going back failed too, or this process was killed.
    """
    for step in [step for step in journal.steps if step.state != DONE]:
        try:
            step.cut_off |= step.state == BEGUN
            journal.mark(step, BEGUN)
            if step.kind != "before":
                machine.terminal.note(step.title, "bold")
            do(step, machine)
            journal.mark(step, DONE)
        except Exception as error:
            raise _gone_back(journal, machine, step, _as_ours(error)) from None
        except KeyboardInterrupt:
            machine.terminal.note(f"Interrupted: {step.title}. Going back:", "yellow")
            go_back(journal, machine)
            raise InterruptedByUser(f"Interrupted. {came_back(journal)}", f"qmdctl {journal.verb} begins again") from None


def go_back(journal: Journal, machine: Machine) -> None:
    """Undo what was taken, the last step first. QmdError where a step cannot be undone; the rest is still to do then.

    A full disk, which may be why it goes back, does not stop it: what the journal does not know to be undone may be undone again.
    """
    journal.release()
    unwritten = ""
    for step in journal.taken:
        try:
            undo(step, machine, journal)
        except KeyboardInterrupt:
            raise InterruptedByUser(f"Interrupted while going back: {step.title}.", "qmdctl upgrade --undo does the rest") from None
        except Exception as raised:
            error = _as_ours(raised)
            fix = f"{error.fix}; then: qmdctl upgrade --undo" if error.fix else "mend that, then: qmdctl upgrade --undo"
            raise QmdError(f"Going back stopped at: {step.title}: {error.message}", fix, error.details) from None
        step.state = UNDONE
        try:
            journal.save()
        except ConfigurationError as error:
            unwritten = f"{error.message}. Going back went on without it.\n  → {error.fix}"
    journal.close()
    if unwritten:
        machine.terminal.note(unwritten, "yellow")


def came_back(journal: Journal) -> str:
    """In a sentence, what is in force after going back."""
    before = next((step for step in journal.steps if step.kind == "before"), None)
    if journal.has_begun("up") and before is not None and before.facts["running"]:
        return "What ran before serves again."
    return "What ran before was not touched." if before is not None and before.facts["running"] else "All is as it was before."


def _as_ours(error: Exception) -> QmdError:
    return error if isinstance(error, QmdError) else QmdError(f"{type(error).__name__}: {error}")


def _gone_back(journal: Journal, machine: Machine, step: Step, error: QmdError) -> QmdError:
    machine.terminal.note(f"✗ {step.title}: {error.message}", "red")
    machine.terminal.note("Going back:")
    try:
        go_back(journal, machine)
    except InterruptedByUser:
        raise
    except QmdError as second:
        return QmdError(f"{step.title} failed ({error.message}), and then: {second.message}", second.fix, second.details)
    return WentBack(f"{journal.title} failed: {error.message}. {came_back(journal)}", error.fix, error.details)
