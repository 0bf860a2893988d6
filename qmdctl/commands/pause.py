"""`qmdctl pause`: the device is free for something else, and the stack stays where it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from qmdctl.commands.common import Invocation, JsonOption, invocation, parse_seconds

if TYPE_CHECKING:
    from qmdctl.engine import Container
    from qmdctl.hardware import Hardware
    from qmdctl.settings import Settings

PausedArgument = Annotated[list[str] | None, typer.Argument(metavar="SERVICE", help="embed or vllm; none named: both.")]
LOADING = ("embed", "vllm")  # what holds models


def pause(
    context: typer.Context,
    service: PausedArgument = None,
    timeout: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Give up when requests in flight take longer than 90, 30m or 2h; nothing is changed then."),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Free the GPU's memory: requests in flight are answered, then the models are unloaded.

    embed keeps its port, lets requests wait a moment and then answers 503; vLLM's container is stopped. `qmdctl resume` loads the models
    again. A restart of the machine ends the pause of embed, not that of vLLM.
    """
    from qmdctl.control import control
    from qmdctl.engine import Engine
    from qmdctl.errors import InterruptedByUser
    from qmdctl.inside import Running
    from qmdctl.lock import exclusive
    from qmdctl.terminal import human_bytes

    call = invocation(context)
    terminal = call.output(json_output)
    limit = ["--timeout", f"{parse_seconds(timeout):g}"] if timeout is not None else []
    settings = call.settings(need_env=False)
    services = loading_services(call, settings, service)
    engine, compose = Engine.connect(), call.compose(settings)
    there = engine.containers(settings.name)
    before = free_bytes(engine.host, settings, services)

    def draining(line: dict[str, Any]) -> None:
        terminal.note(f"embed: {line.get('requests', 0)} requests in flight, {line.get('queued_tokens', 0)} tokens queued", "dim")

    with exclusive(settings.project.folder, "pause"):
        try:
            if "embed" in services and there["embed"].running:
                control(Running(compose), "pause", *limit, on_line=draining)
            if "vllm" in services and _stoppable(there["vllm"]):
                compose.run("--profile", "*", "stop", "vllm")
        except KeyboardInterrupt:
            raise InterruptedByUser("Interrupted. What was not paused yet goes on serving.", "qmdctl status") from None
    after = free_bytes(engine.host, settings, services)
    freed = "" if before is None or after is None else f" Free memory: {human_bytes(before)} before, {human_bytes(after)} now."
    again = " ".join(["qmdctl resume", *(service or [])])
    terminal.result(
        f"Paused: {', '.join(services)}.{freed} `{again}` loads the models again.",
        {"status": "paused", "services": services, "free_bytes_before": before, "free_bytes": after},
    )


def loading_services(call: Invocation, settings: Settings, named: list[str] | None) -> list[str]:
    """Those of `named`, else of all, that hold models and have a container. ConfigurationError for a sidecar."""
    from qmdctl.errors import ConfigurationError

    others = [name for name in named or [] if name in settings.every_service and name not in LOADING]
    if others:
        raise ConfigurationError(f"{', '.join(others)} holds no model", "name embed or vllm, or none for both")
    return [name for name in call.existing_services(settings, named) if name in LOADING]


def _stoppable(container: Container) -> bool:
    """One that Docker is about to start again is not running at this moment, and still has to be stopped."""
    return container.state in ("running", "restarting")


def free_bytes(host: str, settings: Settings, services: list[str]) -> int | None:
    """Memory that a program can have, as `free_on`. None where the engine is another machine's."""
    from qmdctl.hardware import find_hardware

    return free_on(find_hardware(), settings, services) if host.startswith("unix://") else None


def free_on(hardware: Hardware, settings: Settings, services: list[str]) -> int | None:
    """Of the cards of these services together, each counted once; the machine's where it shares its memory or has no such card.

    None where nothing tells it.
    """
    from qmdctl.checks.context import GPU_KEYS

    found = {hardware.gpu(settings[GPU_KEYS[service]]) for service in services}
    cards = [card for card in found if card is not None and not card.unified]
    if len(cards) < len(found) or not cards:
        return hardware.available_bytes or None
    free = [card.free_bytes for card in cards if card.free_bytes is not None]
    return sum(free) if len(free) == len(cards) else None
