"""`qmdctl up`: checks, `docker compose up`, and the truth about the start until everything is ready."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qmdctl.commands.common import JsonOption, ServiceArgument, invocation, mode_flags, parse_seconds

if TYPE_CHECKING:
    from qmdctl.compose import Compose
    from qmdctl.engine import Container, Engine
    from qmdctl.settings import Settings
    from qmdctl.startup.watch import Start
    from qmdctl.state import State
    from qmdctl.terminal import Terminal

GOES_ON = "(watches again), qmdctl status, or qmdctl down (stops it)"


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
    no_build: Annotated[bool, typer.Option("--no-build", help="Take the embed image that is here.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Start the stack and wait until it is ready.

    A first download may take a night: there is no time limit unless --timeout gives one, and a download to which no byte comes is said
    to be stalled. Ctrl-C ends the waiting; what runs goes on.
    """
    from qmdctl.commands.resume import resume_paused
    from qmdctl.engine import Engine
    from qmdctl.errors import InterruptedByUser
    from qmdctl.lock import exclusive
    from qmdctl.releases import unfinished
    from qmdctl.releases.snapshot import record_start
    from qmdctl.settings import load_settings
    from qmdctl.startup.compose_up import compose_up, remove

    call = invocation(context)
    terminal = call.output(json_output)
    limit = parse_seconds(timeout) if timeout is not None else None
    again = " ".join(["qmdctl up", *(["--cpu"] if cpu else []), *(["--gpu"] if gpu else []), *(service or [])])
    project = call.project()
    flags = mode_flags(cpu, gpu, project)
    try:
        with exclusive(project.folder, "up"):  # not while it watches: what is watched may be stopped or taken down
            settings = _prepare_services(load_settings(project, flags), terminal, flags)
            unfinished.note(project, terminal)
            services = call.services(settings, service)
            compose = call.compose(settings)
            engine = Engine.connect()
            there = engine.containers(settings.name)
            if service:
                service = services = [*services, *_led_elsewhere(settings, there, services, terminal)]
            resume_paused(engine, settings, terminal, services)
            off = [name for name in there if name in settings.every_service and name not in settings.services]
            named = {name: one for name, one in there.items() if name in services}
            if not off and _is_current(engine, compose, settings, named, services):
                _settle_services(engine, compose, settings, terminal, services)
                record_start(settings, engine, compose, terminal, "found running", 0.0)
                _already_running(engine, settings, services, terminal)
                return
            if not skip_checks:
                check_machine(settings, terminal, services)
            built = bool(settings["EMBED_IMAGE"]) and engine.has_image(settings["EMBED_IMAGE"])
            build = not (no_build or _is_kept(settings, terminal))
            if settings["EMBED_IMAGE"] and build and not built:
                terminal.note("The embed image is built first: once, some minutes and several GB of downloads.", "dim")
            began, clock = datetime.now(UTC), time.monotonic()
            remove(compose, terminal, off)
            compose_up(compose, terminal, list(service or []), settings, built, limit, again, build)
            _restart_outdated(engine, compose, settings, services)
            _make_switched_anew(engine, compose, settings, services, there)
        if no_wait:
            if settings["TAILNET_SERVICE"]:
                terminal.note("The Tailscale Services are advertised by the next `qmdctl up` that finds the sidecars running.", "yellow")
            terminal.result("Started. `qmdctl status` shows when it is ready.", _result("started", []))
            return
        start = _wait(engine, settings, services, terminal, call.state(), again, began, limit, time.monotonic() - clock)
    except KeyboardInterrupt:
        raise InterruptedByUser("Interrupted. What runs goes on running.", f"{again} {GOES_ON}") from None
    _settle_services(engine, compose, settings, terminal, services)
    record_start(settings, engine, compose, terminal, "up", start.total_seconds)
    _report(engine, settings, services, start, terminal)


def _prepare_services(settings: Settings, terminal: Terminal, flags: dict[str, str] | None) -> Settings:
    """With TAILNET_SERVICE: node names of their own in .env, and the folders that the sidecars are given. What is in force then."""
    from qmdctl import env_file
    from qmdctl.settings import load_settings
    from qmdctl.tailnet import services

    if not services.wanted(settings):
        return settings
    services.prepare(settings.project.folder)
    named = services.name_nodes(settings.env)
    if not named:
        return settings
    env_file.write(settings.project.env_path, settings.env.render())
    names = ", ".join(f"{key}={settings.env.values[key]}" for key in named)
    terminal.note(f"A node may not have the name of a Service: {names} is now in .env.", "yellow")
    return load_settings(settings.project, flags)


def _is_kept(settings: Settings, terminal: Terminal) -> bool:
    """Whether EMBED_IMAGE is not to be built: one that a rollback keeps, or that an upgrade named."""
    from qmdctl.releases.images import taken_as_it_is

    name = settings["EMBED_IMAGE"]
    kept = bool(name) and taken_as_it_is(settings.project.folder, name)
    if kept:
        terminal.note(
            f"EMBED_IMAGE is {name}, which is not built here: the checkout's own again with `qmdctl upgrade --image embed=`.", "dim"
        )
    return kept


def _led_elsewhere(settings: Settings, there: dict[str, Container], named: list[str], terminal: Terminal) -> list[str]:
    """Running sidecars beside the services that were named whose name leads elsewhere by now: left alone, they would lead past a lock."""
    import posixpath

    from qmdctl.tailnet import SIDECARS, serve_config

    found = []
    for name in SIDECARS:
        if name in there and there[name].running and name not in named and name in settings.services:
            path = serve_config.configured_path(settings, settings.project.folder, name)
            if posixpath.normpath(path) != posixpath.normpath(there[name].environment.get("TS_SERVE_CONFIG") or "/"):
                found.append(name)
    if found:
        terminal.note(f"{', '.join(found)} as well: by the settings its name leads elsewhere now.", "yellow")
    return found


def _settle_services(engine: Engine, compose: Compose, settings: Settings, terminal: Terminal, named: list[str]) -> None:
    from qmdctl.tailnet import services

    names = services.settle(engine, compose, settings, named) if services.wanted(settings) else []
    if names:
        terminal.note(f"Advertised: {', '.join(names)}. A new host of a Service is approved in the admin console (docs/tailnet.md).")


def _is_current(engine: Engine, compose: Compose, settings: Settings, running: dict[str, Container], services: list[str]) -> bool:
    """Whether all of `services` are ready, made from the configuration and the files that are there now."""
    from qmdctl.catalog.served import is_switched
    from qmdctl.startup.compose_up import changed
    from qmdctl.startup.freshness import outdated
    from qmdctl.startup.overview import look

    if len(running) < len(services) or not all(one.running for one in running.values()):
        return False
    if not all(one.ready for one in look(engine, services, settings) if one.service in services):
        return False
    if any(outdated(settings.project.folder, one) for one in running.values()):
        return False
    if changed(compose, {name: one.config_hash for name, one in running.items()}):
        return False
    return "embed" not in services or not is_switched(compose, running["embed"])


def _make_switched_anew(engine: Engine, compose: Compose, settings: Settings, services: list[str], before: dict[str, Container]) -> None:
    """What Compose does not see either: an embed that serves what a switch chose, while .env names what it was made with again."""
    from qmdctl.catalog.served import is_switched

    now = engine.containers(settings.name).get("embed")
    same = now is not None and "embed" in before and now.id == before["embed"].id
    if now is not None and same and "embed" in services and is_switched(compose, now):
        compose.run("up", "--detach", "--no-deps", "--no-build", "--force-recreate", "embed")


def _already_running(engine: Engine, settings: Settings, services: list[str], terminal: Terminal) -> None:
    from qmdctl.startup.overview import as_table, look

    stack = look(engine, services, settings)
    terminal.result(f"The stack is running.\n{as_table(stack)}", _result("running", [one.payload() for one in stack]))


def _restart_outdated(engine: Engine, compose: Compose, settings: Settings, services: list[str]) -> None:
    """What Compose does not see: vllm and the monitors read their mounted folder when they start, a sidecar its key.

    A sidecar that Docker is about to start again waits for that longer each time, up to a minute, whatever was mended meanwhile.
    """
    from qmdctl.monitors import READS_WHEN_IT_STARTS
    from qmdctl.startup.freshness import newer, outdated
    from qmdctl.tailnet import SIDECARS
    from qmdctl.tailnet.sidecar import read_sidecar

    there = {name: one for name, one in engine.containers(settings.name).items() if name in services}
    folder = settings.project.folder
    again = [name for name in ("vllm", *READS_WHEN_IT_STARTS) if name in there and there[name].running and outdated(folder, there[name])]
    key = folder / settings["TS_AUTHKEY_FILE"] if settings["TS_AUTHKEY_FILE"] else None
    for name in (name for name in SIDECARS if name in there):
        waits = there[name].running and key is not None and newer(key, there[name])
        if there[name].state == "restarting" or (waits and read_sidecar(engine, there[name]).state == "NeedsLogin"):
            again.append(name)
    if again:
        compose.run("restart", *again)


def _wait(
    engine: Engine,
    settings: Settings,
    services: list[str],
    terminal: Terminal,
    state: State,
    again: str,
    began: datetime,
    limit: float | None,
    spent: float,
) -> Start:
    """`spent`: seconds of the limit that building and pulling took."""
    from qmdctl.startup.display import make_display
    from qmdctl.startup.estimate import make_estimate, remember, start_key
    from qmdctl.startup.watch import EngineSource, Watch

    with make_display(terminal, make_estimate(settings, state)) as display:
        watch = Watch(
            EngineSource(engine, settings.project.folder), settings.name, services, display, facts=settings, began=began, again=again
        )
        start = watch.run(limit, spent)
    remember(start_key(settings), state, {name: start.phases[name] for name in start.fresh}, start.total_seconds)
    return start


def _report(engine: Engine, settings: Settings, services: list[str], start: Start, terminal: Terminal) -> None:
    """What answers where."""
    from qmdctl.startup.overview import addresses, look
    from qmdctl.terminal import human_seconds

    stack = look(engine, services, settings)
    restarts = "".join(f" {name} was restarted {count} time{'s' * (count > 1)} on the way." for name, count in start.restarted.items())
    text = f"Ready in {human_seconds(start.total_seconds)}.{restarts}\n{addresses(stack)}\nTest it with real requests: qmdctl health"
    data = _result("ready", [one.payload() for one in stack])
    phases = {name: {phase: round(seconds, 1) for phase, seconds in phases.items()} for name, phases in start.phases.items()}
    terminal.result(text, {**data, "seconds": round(start.total_seconds, 1), "phases": phases, "restarted": start.restarted})


def check_machine(settings: Settings, terminal: Terminal, services: list[str]) -> None:
    """The checks of `qmdctl doctor` for these services: warnings are shown, a failure is raised, with the others as its details."""
    from qmdctl.checks import Context, exit_code, run_checks
    from qmdctl.commands.doctor import as_line
    from qmdctl.errors import ConfigurationError, MissingError

    terminal.note("Checking the machine (qmdctl doctor; --skip-checks leaves it out)", "dim")
    findings = list(run_checks(Context(settings, services=services)))
    for finding in findings:
        if finding.level == "warning":
            terminal.note(as_line(finding), "yellow")
    failures = [finding for finding in findings if finding.level == "failure"]
    if failures:
        kind = ConfigurationError if exit_code(findings) == 2 else MissingError
        first, *more = failures
        why = f": {first.why}" if first.why else ""
        raise kind(f"{first.what}{why}", first.fix, "\n".join(map(as_line, more)))


def _result(status: str, services: list[dict[str, Any]]) -> dict[str, Any]:
    return {"status": status, "services": services}
