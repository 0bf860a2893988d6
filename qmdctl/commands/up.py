"""`qmdctl up`: checks, `docker compose up`, and the truth about the start until everything is ready."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qmdctl.commands.common import JsonOption, ServiceArgument, invocation, mode_flags

if TYPE_CHECKING:
    from qmdctl.engine import Engine
    from qmdctl.settings import Settings
    from qmdctl.startup.watch import Start
    from qmdctl.state import State
    from qmdctl.terminal import Terminal

UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}
GOES_ON = "qmdctl up (watches again), qmdctl status, or qmdctl down (stops it)"


def up(
    context: typer.Context,
    service: ServiceArgument = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Without a GPU, on small models: for trying.")] = False,
    gpu: Annotated[bool, typer.Option("--gpu", help="On the GPU, whatever COMPOSE_FILE in .env says.")] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not wait until the services are ready.")] = False,
    timeout: Annotated[
        str | None, typer.Option(metavar="TIME", help="Stop waiting after 90, 30m or 2h; what runs goes on. Without it there is no limit.")
    ] = None,
    skip_checks: Annotated[bool, typer.Option("--skip-checks", help="Do not check the machine before.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Start the stack and wait until it is ready.

    A first download may take a night: there is no time limit unless --timeout gives one, and a download to which no byte comes is said
    to be stalled. Ctrl-C ends the waiting; what runs goes on.
    """
    from qmdctl.engine import Engine
    from qmdctl.errors import InterruptedByUser
    from qmdctl.startup.compose_up import changed, compose_up
    from qmdctl.startup.overview import as_table, look
    from qmdctl.startup.phases import phase_of

    call = invocation(context)
    terminal = call.output(json_output)
    limit = parse_seconds(timeout) if timeout is not None else None
    settings = call.settings(mode_flags(cpu, gpu))
    services = call.services(settings, service)
    compose = call.compose(settings)
    engine = Engine.connect()
    running = {name: one for name, one in engine.containers(settings.name).items() if name in services}
    unchanged = not changed(compose, {name: one.config_hash for name, one in running.items()})
    if len(running) == len(services) and unchanged and all(phase_of(one).ready for one in running.values()):
        stack = look(engine, settings.name, services, settings)
        terminal.result(f"The stack is running.\n{as_table(stack)}", _result("running", [one.payload() for one in stack]))
        return
    try:
        if not skip_checks:
            check_machine(settings, terminal)
        built = bool(settings["EMBED_IMAGE"]) and engine.has_image(settings["EMBED_IMAGE"])
        if settings["EMBED_IMAGE"] and not built:
            terminal.note("The embed image is built first: once, some minutes and several GB of downloads.", "dim")
        began = datetime.now(UTC)
        compose_up(compose, terminal, list(service or []), settings, built)
        if no_wait:
            terminal.result("Started. `qmdctl status` shows when it is ready.", _result("started", []))
            return
        start = _wait(engine, settings, services, terminal, call.state(), limit, began)
    except KeyboardInterrupt:
        raise InterruptedByUser("Interrupted. What runs goes on running.", GOES_ON) from None
    _report(engine, settings, services, start, terminal)


def _wait(
    engine: Engine, settings: Settings, services: list[str], terminal: Terminal, state: State, limit: float | None, began: datetime
) -> Start:
    from qmdctl.startup.display import make_display
    from qmdctl.startup.estimate import make_estimate, remember
    from qmdctl.startup.watch import EngineSource, Watch

    with make_display(terminal, make_estimate(settings, state)) as display:
        start = Watch(EngineSource(engine), settings.name, services, display, facts=settings, began=began).run(limit)
    remember(settings.project.folder, state, {name: start.phases[name] for name in start.fresh}, start.total_seconds)
    return start


def _report(engine: Engine, settings: Settings, services: list[str], start: Start, terminal: Terminal) -> None:
    """What answers where."""
    from qmdctl.startup.overview import addresses, look
    from qmdctl.terminal import human_seconds

    stack = look(engine, settings.name, services, settings)
    restarts = "".join(f" {name} was restarted {count} time{'s' * (count > 1)} on the way." for name, count in start.restarted.items())
    text = f"Ready in {human_seconds(start.total_seconds)}.{restarts}\n{addresses(stack)}\nTest it with real requests: qmdctl health"
    data = _result("ready", [one.payload() for one in stack])
    phases = {name: {phase: round(seconds, 1) for phase, seconds in phases.items()} for name, phases in start.phases.items()}
    terminal.result(text, {**data, "seconds": round(start.total_seconds, 1), "phases": phases, "restarted": start.restarted})


def check_machine(settings: Settings, terminal: Terminal) -> None:
    """The checks of `qmdctl doctor`: warnings are shown, a failure ends the start. Raises the error that names all that failed."""
    from qmdctl.checks import Context, exit_code, run_checks
    from qmdctl.commands.doctor import as_line
    from qmdctl.errors import ConfigurationError, MissingError

    terminal.note("Checking the machine (qmdctl doctor; --skip-checks leaves it out)", "dim")
    findings = list(run_checks(Context(settings)))
    for finding in findings:
        if finding.level == "warning":
            terminal.note(as_line(finding), "yellow")
    failures = [finding for finding in findings if finding.level == "failure"]
    if failures:
        kind = ConfigurationError if exit_code(findings) == 2 else MissingError
        first, *more = failures
        why = f": {first.why}" if first.why else ""
        raise kind(f"{first.what}{why}", first.fix, "\n".join(map(as_line, more)))


def parse_seconds(text: str) -> float:
    """90, 90s, 30m, 2h. ConfigurationError for anything else."""
    from qmdctl.errors import ConfigurationError

    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip().lower())
    if not match or not float(match.group(1)):
        raise ConfigurationError(f"--timeout {text!r} is not a time", "write seconds (90), minutes (30m) or hours (2h)")
    return float(match.group(1)) * UNITS[match.group(2)]


def _result(status: str, services: list[dict[str, Any]]) -> dict[str, Any]:
    return {"status": status, "services": services}
