"""`qmdctl resume`: what was paused serves again."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qmdctl.commands.common import JsonOption, invocation, parse_seconds
from qmdctl.commands.pause import PausedArgument, loading_services

if TYPE_CHECKING:
    from datetime import datetime

    from qmdctl.engine import Engine
    from qmdctl.inside import Inside
    from qmdctl.settings import Settings
    from qmdctl.startup.display import LiveDisplay, PlainDisplay
    from qmdctl.terminal import Terminal


def resume(
    context: typer.Context,
    service: PausedArgument = None,
    timeout: Annotated[str | None, typer.Option(metavar="TIME", help="Stop waiting after 90, 30m or 2h; what loads goes on.")] = None,
    json_output: JsonOption = False,
) -> None:
    """Load the models again, and wait until they answer.

    Requests that wait are answered then. Ctrl-C ends the waiting; what loads goes on.
    """
    from datetime import UTC, datetime

    from qmdctl.engine import Engine
    from qmdctl.errors import InterruptedByUser
    from qmdctl.inside import Running
    from qmdctl.lock import exclusive
    from qmdctl.startup.display import make_display
    from qmdctl.startup.estimate import make_estimate
    from qmdctl.terminal import human_seconds

    call = invocation(context)
    terminal = call.output(json_output)
    limit = parse_seconds(timeout) if timeout is not None else None
    settings = call.settings(need_env=False)
    services = loading_services(call, settings, service)
    engine, compose = Engine.connect(), call.compose(settings)
    began, clock = datetime.now(UTC), time.monotonic()
    again = " ".join(["qmdctl resume", *(service or [])])
    with exclusive(settings.project.folder, "resume"):
        try:
            there = engine.containers(settings.name)
            stopped = [name for name in services if not there[name].running]
            with make_display(terminal, make_estimate(settings, call.state())) as display:
                loads = "embed" in services and "embed" not in stopped
                try:
                    if loads and stopped:  # vLLM waits for an embed that loads, not for one that is paused
                        begin_loading(Running(compose))
                finally:
                    if stopped:
                        compose.run("--profile", "*", "start", *stopped)
                if loads:
                    load_embed(Running(compose), display, limit)
                _watch(engine, settings, services, display, began, again, limit, time.monotonic() - clock)
        except KeyboardInterrupt:
            raise InterruptedByUser("Interrupted. What loads goes on loading.", f"{again} (waits again); qmdctl status") from None
    seconds = time.monotonic() - clock
    terminal.result(
        f"Ready in {human_seconds(seconds)}: {', '.join(services)}.",
        {"status": "ready", "services": services, "seconds": round(seconds, 1)},
    )


def begin_loading(embed: Inside) -> None:
    """Have embed begin to load its models, and do not wait for them."""
    from qmdctl.control import control
    from qmdctl.errors import WaitTimeoutError

    with contextlib.suppress(WaitTimeoutError):  # what loads goes on
        control(embed, "resume", "--timeout", "1")


def load_embed(embed: Inside, display: PlainDisplay | LiveDisplay, limit: float | None) -> None:
    """Until embed's models answer; done at once where they do."""
    from qmdctl.control import control, phase_of_line
    from qmdctl.startup.estimate import Progress

    began = time.monotonic()
    name, since = "", began

    def show(line: dict[str, Any]) -> None:
        nonlocal name, since
        phase, now = phase_of_line(line), time.monotonic()
        name, since = phase.name, since if phase.name == name else now
        display.show({"embed": Progress(phase, now - since)}, now - began)

    control(embed, "resume", *(["--timeout", f"{limit:g}"] if limit is not None else []), on_line=show)


def _watch(
    engine: Engine,
    settings: Settings,
    services: list[str],
    display: PlainDisplay | LiveDisplay,
    began: datetime,
    again: str,
    limit: float | None,
    spent: float,
) -> None:
    from qmdctl.startup.watch import EngineSource, Watch

    source = EngineSource(engine, settings.project.folder)
    Watch(source, settings.name, services, display, facts=settings, began=began, again=again).run(limit, spent)


def resume_paused(engine: Engine, settings: Settings, terminal: Terminal, services: list[str]) -> None:
    """For `up`, which means that the stack is to serve: an embed that was paused begins to load. Its start is watched as any other."""
    from qmdctl.compose import Compose
    from qmdctl.control import as_of_now
    from qmdctl.inside import Running

    container = engine.containers(settings.name).get("embed")
    if container is None or "embed" not in services or as_of_now(engine, container).probe.get("status") != "paused":
        return
    terminal.note("embed was paused: its models are loaded again.", "dim")
    begin_loading(Running(Compose(settings, terminal)))
