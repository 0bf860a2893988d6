"""`embed-service control` in the running container: pause and resume, with their progress; what the service says of itself now."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

from qmdctl.engine import Container, Engine
from qmdctl.errors import MissingError, QmdError, WaitTimeoutError
from qmdctl.inside import ATTENDED, Inside
from qmdctl.startup.phases import PROBE_NAMES, WORDS, Phase

OnLine = Callable[[dict[str, Any]], None]
UNLOADED = frozenset({"paused", "idle"})
PROBE = ["python", "-m", "embed_service.probe"]


def control(inside: Inside, *arguments: str, on_line: OnLine = lambda line: None) -> dict[str, Any]:
    """The last line of a command that was carried out; `on_line` gets each one before it: {"phase": …}.

    Raises WaitTimeoutError, MissingError where the image or the service has no control, else QmdError. Ctrl-C leaves at once, and the
    service sees its client go: a pause is undone, a resume goes on.
    """
    last: dict[str, Any] = {}
    with closing(inside.lines("control", *arguments, ATTENDED)) as lines:
        for line in lines:
            if "phase" in line:
                on_line(line)
            else:
                last = line
    if last.get("done"):
        return last
    said = str(last.get("error") or "the service's answer ended before it was done")
    if last.get("code") == "timeout":
        raise WaitTimeoutError(said, "qmdctl status; a larger --timeout waits longer")
    kind = MissingError if last.get("code") == "unavailable" else QmdError
    raise kind(said, "qmdctl status; its log: qmdctl logs embed")


def phase_of_line(line: dict[str, Any]) -> Phase:
    """A line of `control` as the display of a start shows it."""
    name = PROBE_NAMES.get(str(line["phase"]), str(line["phase"]))
    sizes = [int(line.get(key) or 0) for key in ("done_bytes", "total_bytes")]
    return Phase(name if name in WORDS else "starting", done_bytes=sizes[0], total_bytes=sizes[1])


def as_of_now(engine: Engine, container: Container) -> Container:
    """With what embed's healthcheck would say at this moment: Docker asks every half minute only, and a pause takes a second."""
    if container.service != "embed" or not container.running or not container.probe:
        return container
    try:
        line = json.loads(engine.execute(container, PROBE))
    except ValueError:
        return container
    return replace(container, probe=line) if isinstance(line, dict) and "status" in line else container
