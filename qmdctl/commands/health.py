"""`qmdctl health`: the chain from the engine to a true answer, and its first broken link."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qmdctl.commands.common import JsonOption, invocation

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmdctl.engine import Container
    from qmdctl.probes import Link
    from qmdctl.settings import Settings

REQUESTS = {"embed": ("embedding", "rerank"), "vllm": ("completion", "chat")}


def health(
    context: typer.Context,
    key_file: Annotated[Path | None, typer.Option(metavar="FILE", help="File with an API key as plain text.")] = None,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", min=0.1, help="For one request.")] = 20.0,
    json_output: JsonOption = False,
) -> None:
    """Send real requests to each service.

    An embedding, a rerank, a completion and a chat. Exit status 1 when one fails; the first broken link is named.
    """
    from qmdctl.engine import Engine
    from qmdctl.probes import Link

    call = invocation(context)
    terminal = call.output(json_output)
    settings = call.settings(need_env=False)
    key = api_key(settings, key_file)
    engine = Engine.connect()
    links = [Link("engine", "engine", True, None, f"Docker {engine.version()} at {engine.host}")]
    containers = engine.containers(settings.name)
    for service in settings.services:
        links += check_service(service, containers.get(service), key, timeout)
    if "embed" in settings.services and forwards(settings):
        links.append(check_forwarder(containers.get("embed"), links, key, timeout))
    broken = next((link for link in links if link.ok is False), None)
    data = {"ok": broken is None, "first_broken": broken.payload() if broken else None, "links": [link.payload() for link in links]}
    terminal.result(as_text(links, broken), data)
    if broken:
        raise typer.Exit(1)


def check_service(service: str, container: Container | None, key: str | None, timeout: float) -> list[Link]:
    """Container, port, /health, then each real request. What follows a broken link is not tried, but the requests stand side by side."""
    from qmdctl.probes import Link, Probe, try_link

    port = next(iter(container.ports.values()), 0) if container else 0
    probe = Probe(service, f"http://127.0.0.1:{port}", timeout, key if service == "embed" else None)
    chain: list[tuple[str, Callable[[], str]]] = [("container", lambda: running(service, container))]
    if service in REQUESTS:  # of a service that a compose.override.yaml adds, nothing more is known
        chain += [("port", lambda: connect(port, service)), ("/health", probe.health)]
    links: list[Link] = []
    for name, action in chain:
        links.append(Link(service, name) if any(link.ok is not True for link in links) else try_link(service, name, action))
    requests: list[tuple[str, Callable[[], str]]] = [(name, getattr(probe, name)) for name in REQUESTS.get(service, ())]
    whole = all(link.ok for link in links)
    return links + [try_link(service, name, action) if whole else Link(service, name) for name, action in requests]


def check_forwarder(container: Container | None, links: list[Link], key: str | None, timeout: float) -> Link:
    """A chat through embed, after all the others: where vllm itself is broken, that link is named first."""
    from qmdctl.probes import Link, Probe, try_link

    reached = next((link for link in links if link.service == "embed" and link.name == "/health"), None)
    if container is None or reached is None or not reached.ok:
        return Link("embed", "forwarded chat")
    port = next(iter(container.ports.values()), 0)
    return try_link("embed", "forwarded chat", Probe("embed", f"http://127.0.0.1:{port}", timeout, key).chat)


def running(service: str, container: Container | None) -> str:
    from qmdctl.probes import Broken
    from qmdctl.startup.phases import phase_of

    if container is None:
        raise Broken("there is no container", "qmdctl up")
    if not container.running:
        raise Broken(f"{container.name}: {phase_of(container).text}", f"qmdctl start {service}; its log: qmdctl logs {service}")
    return container.name


def connect(port: int, service: str) -> str:
    import socket

    from qmdctl.probes import Broken

    if not port:
        raise Broken("its container publishes no port", "qmdctl up")
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except OSError as error:
        raise Broken(f"127.0.0.1:{port}: {error.strerror or error}", f"qmdctl status; qmdctl logs {service}") from None
    return f"127.0.0.1:{port}"


def forwards(settings: Settings) -> bool:
    """Whether embed passes text generation on."""
    return bool(settings["GENERATION_URL"])


def api_key(settings: Settings, key_file: Path | None) -> str | None:
    """A key as plain text: the first of `key_file`, else of API_KEYS_FILE. None where no keys are configured.

    ConfigurationError where the file cannot be read or has only digests.
    """
    from qmdctl.errors import ConfigurationError

    path = key_file or (settings.project.folder / settings["API_KEYS_FILE"] if settings["API_KEYS_FILE"] else None)
    if path is None:
        return None
    try:
        lines = [line.strip() for line in path.expanduser().read_text("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}", "give a readable file: qmdctl health --key-file FILE") from None
    plain = [line for line in lines if line and not line.startswith(("#", "sha256:"))]
    if not plain:
        fix = "qmdctl health --key-file FILE, with a key as plain text"
        raise ConfigurationError(f"{path} has no key as plain text, only digests or nothing", fix)
    return plain[0]


def as_text(links: list[Link], broken: Link | None) -> str:
    from qmdctl.terminal import table

    marks = {True: "✓", False: "✗", None: "-"}
    rows = []
    for link in links:
        seconds = f"{link.seconds:.2f} s" if link.seconds is not None else ""
        rows.append((marks[link.ok], link.service if link.service != link.name else "", link.name, seconds, link.detail or "not tried"))
    if broken is None:
        return table(rows) + "\nAll links hold."
    fix = f"\n  → {broken.fix}" if broken.fix else ""
    return table(rows) + f"\nThe first broken link: {broken.service}, {broken.name}: {broken.detail}{fix}"
