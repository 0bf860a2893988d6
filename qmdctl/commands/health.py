"""`qmdctl health`: the chain from the engine to a true answer, and its first broken link."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qmdctl.commands.common import JsonOption, invocation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from qmdctl.engine import Container, Engine
    from qmdctl.probes import Link
    from qmdctl.settings import Settings

REQUESTS = {"embed": ("embedding", "rerank"), "vllm": ("completion", "chat")}


def health(
    context: typer.Context,
    key_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File with an API key as plain text (else QMD_API_KEY, else one made for this call)."),
    ] = None,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", min=0.1, max=600, help="For one request.")] = 20.0,
    json_output: JsonOption = False,
) -> None:
    """Send real requests to each service.

    An embedding, a rerank, a completion and a chat; then each sidecar's name, certificate and way. Exit status 1 when one fails; the first
    broken link is named.
    """
    from qmdctl.engine import Engine
    from qmdctl.probes import Link
    from qmdctl.tailnet import SIDECARS
    from qmdctl.tailnet.links import check_sidecars

    call = invocation(context)
    terminal = call.output(json_output)
    settings = call.settings(need_env=False)
    key = context.with_resource(api_key(settings, key_file))
    engine = Engine.connect()
    links = [Link("engine", "engine", True, None, f"Docker {engine.version()} at {engine.host}")]
    containers = engine.containers(settings.name)
    for service in settings.services:
        if service in SIDECARS:
            continue
        links += check_service(service, containers.get(service), key, timeout)
    if "prometheus" in settings.services:
        links.append(check_targets(engine, containers.get("prometheus")))
    if "embed" in settings.services and forwards(settings):
        links.append(check_forwarder(containers.get("embed"), links, key, timeout))
    if "embed" in settings.services and (settings["API_KEYS_FILE"] or settings["REQUIRE_CAPABILITY"]):
        links.append(check_lock(containers.get("embed"), links, timeout))
    links += check_sidecars(engine, settings, containers, key, timeout)
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
    with probe.client:
        for name, action in chain:
            links.append(Link(service, name) if any(link.ok is not True for link in links) else try_link(service, name, action))
        requests: list[tuple[str, Callable[[], str]]] = [(name, getattr(probe, name)) for name in REQUESTS.get(service, ())]
        whole = all(link.ok for link in links)
        return links + [try_link(service, name, action) if whole else Link(service, name) for name, action in requests]


def check_targets(engine: Engine, container: Container | None) -> Link:
    """That Prometheus reaches what it is to scrape."""
    from qmdctl import monitors
    from qmdctl.errors import QmdError
    from qmdctl.probes import Broken, Link, try_link

    if container is None or not container.running:
        return Link("prometheus", "targets")

    def ask() -> str:
        try:
            return monitors.targets(engine, container)
        except QmdError as error:
            raise Broken(error.message, error.fix) from None

    return try_link("prometheus", "targets", ask)


def check_forwarder(container: Container | None, links: list[Link], key: str | None, timeout: float) -> Link:
    """A chat through embed, after all the others: where vllm itself is broken, that link is named first."""
    from qmdctl.probes import Link, Probe, try_link

    reached = next((link for link in links if link.service == "embed" and link.name == "/health"), None)
    if container is None or reached is None or not reached.ok:
        return Link("embed", "forwarded chat")
    port = next(iter(container.ports.values()), 0)
    probe = Probe("embed", f"http://127.0.0.1:{port}", timeout, key)
    with probe.client:
        return try_link("embed", "forwarded chat", probe.chat)


def check_lock(container: Container | None, links: list[Link], timeout: float) -> Link:
    """That embed refuses who has neither key nor capability: .env may demand them, and the container be older."""
    from qmdctl.probes import Link, Probe, try_link

    reached = next((link for link in links if link.service == "embed" and link.name == "port"), None)
    if container is None or reached is None or not reached.ok:
        return Link("embed", "lock")
    port = next(iter(container.ports.values()), 0)
    probe = Probe("embed", f"http://127.0.0.1:{port}", timeout)
    with probe.client:
        return try_link("embed", "lock", probe.lock)


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


@contextlib.contextmanager
def api_key(settings: Settings, key_file: Path | None) -> Iterator[str | None]:
    """A key as plain text, valid in this block: the first of `key_file`, else QMD_API_KEY, else the first plain one of API_KEYS_FILE.

    That file should have none: then a key is made that is taken back at the end, so that none needs to be kept in clear. Who may write
    the file may let himself in anyway. None where no keys are configured. ConfigurationError where a file cannot be used.
    """
    from qmdctl import api_keys
    from qmdctl.commands.keys import file_of
    from qmdctl.errors import ConfigurationError

    given = os.environ.get("QMD_API_KEY", "").strip()
    path, in_force = file_of(settings)
    if key_file or given or not in_force:
        yield plain_key(key_file) if key_file else given or None
        return
    with contextlib.ExitStack() as passing:
        try:
            key = first_plain(path) or passing.enter_context(api_keys.passing_key(path))
        except ConfigurationError as error:
            fix = "qmdctl health --key-file FILE, or QMD_API_KEY in the environment, with a key as plain text"
            raise ConfigurationError(error.message, f"{fix}; or {error.fix}") from None
        yield key


def plain_key(path: Path) -> str:
    """ConfigurationError where there is none."""
    from qmdctl.errors import ConfigurationError

    plain = first_plain(path.expanduser())
    if plain is None:
        raise ConfigurationError(f"{path} has no key as plain text", "name a file with the key alone")
    return plain


def first_plain(path: Path) -> str | None:
    """The first line that is neither a comment nor a digest. ConfigurationError where the file cannot be read."""
    from qmdctl.errors import ConfigurationError

    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}", f"ls -l {path}") from None
    return next((line for line in lines if line and not line.startswith(("#", "sha256:"))), None)


def as_text(links: list[Link], broken: Link | None) -> str:
    from qmdctl.terminal import table

    marks = {True: "✓", False: "✗", None: "-"}
    rows = []
    for link in links:
        seconds = f"{link.seconds:.2f} s" if link.seconds is not None else ""
        rows.append((marks[link.ok], link.service if link.service != link.name else "", link.name, seconds, link.detail or "not tried"))
    if broken is None:
        locked = any(link.locked for link in links)
        behind = "No link is broken. What the lock refused can be proven from a laptop that has the capability: qmdctl test"
        return f"{table(rows)}\n{behind if locked else 'All links hold.'}"
    fix = f"\n  → {broken.fix}" if broken.fix else ""
    return table(rows) + f"\nThe first broken link: {broken.service}, {broken.name}: {broken.detail}{fix}"
