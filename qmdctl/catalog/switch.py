"""From one model to another while the service goes on: through its control socket, or by making its container anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from qmdctl.catalog.roles import Role
from qmdctl.errors import InterruptedByUser, QmdError
from qmdctl.inside import ATTENDED, Inside
from qmdctl.process import uninterrupted
from qmdctl.startup.phases import WORDS
from qmdctl.terminal import Terminal, human_bytes

Models = Mapping[Role, tuple[str, str | None]]  # role → id and commit, None for a folder

OWN_WORDS = {
    "draining": "answering the requests in flight",
    "canary": "checking the first answers",
    "going_back": "it does not load: going back to the old model",
}


class SwitchFailed(QmdError):
    """The new model does not serve; the message says whether the old one does."""


@dataclass
class ControlSwitch:
    """The embed service changes its own engine: its port stays open, and requests wait."""

    control: Inside
    terminal: Terminal
    prove: Callable[[], None]
    limit: float | None = None  # seconds for the new model to be ready; going back takes what it takes
    switched: bool = field(default=False, init=False)  # the service said that it serves the new model

    def run(self, before: Models, after: Models) -> dict[str, Any]:
        """The service's last line. SwitchFailed where it went back by itself, or was told to after the requests failed."""
        try:
            done = self._switch(after, self.limit)
            if "error" in done:
                look = "a larger --timeout waits longer" if done.get("code") == "timeout" else "qmdctl logs embed"
                raise SwitchFailed(f"The switch failed: {done['error']} {told_state(done)}", f"{look}; .env is unchanged")
            self.prove()
        except KeyboardInterrupt:
            if not self.switched:
                raise InterruptedByUser(
                    "Interrupted. The service goes back to the old model by itself; .env is unchanged.",
                    "qmdctl models (says what is served)",
                ) from None
            self._go_back(before, "Interrupted before the new model was proven")
            raise InterruptedByUser("Interrupted. The old model is served again; .env is unchanged.", "") from None
        except QmdError as error:
            if not self.switched:
                raise
            why = f"Requests to the new model fail: {error.message}"
            self._go_back(before, why)
            raise SwitchFailed(f"{why}. The old one is served again.", error.fix or "qmdctl logs embed") from None
        return done

    def _go_back(self, before: Models, why: str) -> None:
        """SwitchFailed where the old model does not come back. To stop on the way would leave the new one."""
        with uninterrupted():
            self.terminal.note(f"{why}. Going back to the old model, which Ctrl-C does not interrupt.", "yellow")
            try:
                back = self._switch(before)
            except QmdError as error:
                back = {"error": error.message}
        if "error" in back:
            raise SwitchFailed(
                f"{why}, and going back failed as well: {back['error']}",
                "qmdctl up, which makes embed's container anew with what .env says; it is unchanged",
            ) from None

    def _switch(self, models: Models, limit: float | None = None) -> dict[str, Any]:
        arguments = ["--timeout", str(limit)] if limit is not None else []
        for role, (model, commit) in models.items():
            arguments += [f"--{role.name}-model", model, *([f"--{role.name}-revision", commit] if commit else [])]
        last: dict[str, Any] = {}
        shown = ""
        # Closed at once when Ctrl-C comes in between: the service goes back as soon as its client has gone.
        with closing(self.control.lines("control", "switch", ATTENDED, *arguments)) as lines:
            for line in lines:
                if "phase" in line and str(line["phase"]) != shown:
                    shown = str(line["phase"])
                    self.terminal.note(f"  {phase_text(line)}", "dim")
                last = line
                self.switched |= "done" in line
        return last if last.get("done") or "error" in last else {"error": "the service's answer ended before the switch did."}


@dataclass
class Recreate:
    """A service whose container is made anew with the new model; its port is closed until that is ready.

    `make`: has Compose make it with the new values (True) or with those of .env (False). `wait`: until it is ready, or raises.
    """

    service: str
    terminal: Terminal
    make: Callable[[bool], None]
    wait: Callable[[], None]
    prove: Callable[[], None]

    def run(self) -> None:
        """SwitchFailed after the old one was started again; InterruptedByUser as well, without waiting for it.

        Where the old one's container cannot be made, or that is interrupted: what Compose says, and the command that makes it.
        """
        try:
            self.make(True)
            self.wait()
            self.prove()
        except KeyboardInterrupt:
            self._make_old("Interrupted")
            raise InterruptedByUser(
                f"Interrupted. {self.service} is loading the old model again; .env is unchanged.", "qmdctl up (watches it)"
            ) from None
        except QmdError as error:
            try:
                self._make_old(error.message)
                self.wait()
            except KeyboardInterrupt:
                raise InterruptedByUser(
                    f"Interrupted. The new model does not serve ({error.message}), and {self.service} is loading the old one again; "
                    ".env is unchanged.",
                    "qmdctl up (watches it)",
                ) from None
            except QmdError as again:
                raise SwitchFailed(
                    f"The new model does not serve ({error.message}), and the old one did not come back: {again.message}",
                    again.fix or f"qmdctl logs {self.service}; .env is unchanged: qmdctl up",
                    error.details,
                ) from None
            raise SwitchFailed(
                f"The new model does not serve: {error.message}. The old one is served again; .env is unchanged.", error.fix, error.details
            ) from None

    def _make_old(self, why: str) -> None:
        self.terminal.note(f"{why}: {self.service} is started again with the old model.", "yellow")
        try:
            with uninterrupted():
                self.make(False)
        except QmdError as error:
            raise QmdError(
                f"{self.service} could not be started with the old model: {error.message}",
                "qmdctl up, which makes its container anew with what .env says; it is unchanged",
                error.details,
            ) from None


def phase_text(line: Mapping[str, Any]) -> str:
    """ "loading weights"; of a download its bytes."""
    name = str(line["phase"])
    total = line.get("total_bytes")
    bytes_ = f" {human_bytes(line.get('done_bytes') or 0)} of {human_bytes(total)}" if name == "downloading" and total else ""
    return OWN_WORDS.get(name) or WORDS.get(name, name) + bytes_


def told_state(line: Mapping[str, Any]) -> str:
    """What is served after a failure, as the service says."""
    state = str(line.get("state") or "")
    if state == "serving":
        return "The old model is served again."
    return f"The service says {state}." if state else "What is served now: qmdctl models."
