"""`embed-service control` in the running container: pause, resume and switch, with their progress."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from qmdctl.engine import Container, Engine
from qmdctl.errors import MissingError, QmdError, WaitTimeoutError
from qmdctl.process import talk
from qmdctl.startup.phases import PROBE_NAMES, WORDS, Phase
from qmdctl.terminal import Terminal

OnLine = Callable[[dict[str, Any]], None]
UNLOADED = frozenset({"paused", "idle"})
PROBE = ["python", "-m", "embed_service.probe"]


def control(container: Container, terminal: Terminal, *arguments: str, on_line: OnLine = lambda line: None) -> dict[str, Any]:
    """The last line of a command that was carried out; `on_line` gets each one before it: {"phase": …}.

    Raises WaitTimeoutError, MissingError where the image or the service has no control, else QmdError. Ctrl-C leaves the block at once,
    and the service sees its client go: a pause or a switch is undone, a resume goes on.
    """
    command = ["docker", "exec", "-i", container.name, "python", "-m", "embed_service", "control", *arguments, "--attended"]
    terminal.echo_command(shlex.join(command))
    last: dict[str, Any] = {}
    with talk(command) as program:
        assert program.stdin is not None and program.stdout is not None and program.stderr is not None
        for raw in program.stdout:
            line = as_object(raw)
            if "phase" in line:
                on_line(line)
            elif line:
                last = line
        said = program.stderr.read().decode("utf-8", "replace").strip()
        status = program.wait()
    if last.get("done"):
        return last
    if "error" not in last:
        if "invalid choice" in said:
            raise MissingError(f"{container.name} runs a release that cannot be controlled", "docker compose build embed; then: qmdctl up")
        raise QmdError(f"{shlex.join(command)} ended with status {status}", f"qmdctl logs {container.service}", said)
    if last.get("code") == "timeout":
        raise WaitTimeoutError(str(last["error"]), "qmdctl status; a larger --timeout waits longer")
    kind = MissingError if last.get("code") == "unavailable" else QmdError
    raise kind(str(last["error"]), f"qmdctl status; its log: qmdctl logs {container.service}")


def phase_of_line(line: dict[str, Any]) -> Phase:
    """A line of `control` as the display of a start shows it."""
    name = PROBE_NAMES.get(str(line["phase"]), str(line["phase"]))
    sizes = [int(line.get(key) or 0) for key in ("done_bytes", "total_bytes")]
    return Phase(name if name in WORDS else "starting", done_bytes=sizes[0], total_bytes=sizes[1])


def as_of_now(engine: Engine, container: Container) -> Container:
    """With what embed's healthcheck would say at this moment: Docker asks every half minute only, and a pause takes a second."""
    if container.service != "embed" or not container.running or not container.probe:
        return container
    line = as_object(engine.execute(container, PROBE).encode())
    return replace(container, probe=line) if "status" in line else container


def as_object(text: bytes) -> dict[str, Any]:
    """The JSON object in `text`, {} where there is none."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
