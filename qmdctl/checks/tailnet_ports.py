"""The UDP ports at which laptops reach the sidecars directly: two, free, and not the one of the host's own Tailscale."""

from __future__ import annotations

import errno
import shutil
import socket
from collections.abc import Iterator

from qmdctl.checks.context import Context
from qmdctl.checks.finding import Finding
from qmdctl.checks.tailnet_services import started
from qmdctl.errors import QmdError
from qmdctl.tailnet import UDP_PORT_KEYS

TAILSCALED = 41641  # tailscaled's default


def check(context: Context) -> Iterator[Finding]:
    ports: dict[str, int] = {}
    for service in started(context):
        key = UDP_PORT_KEYS[service]
        try:
            ports[key] = context.settings.port(key)
        except QmdError as error:
            yield Finding("tailnet_ports", "failure", error.message, "", error.fix, True)
            continue
        container = None if context.engine_error else context.containers.get(service)
        own = container is not None and container.running and container.ports.get(f"{ports[key]}/udp") == ports[key]
        yield _port(key, ports[key], service, own)
    if len(ports) == 2 and len(set(ports.values())) == 1:
        what = f"{' and '.join(ports)} are both {next(iter(ports.values()))}"
        yield Finding("tailnet_ports", "failure", what, "two sidecars cannot have one port", "give one of them another number", True)


def _port(key: str, port: int, service: str, own: bool) -> Finding:
    if own:
        return Finding("tailnet_ports", "ok", f"{port}/udp is {service}'s own")
    if not free(port):
        whose = "the host's own Tailscale, or another program" if port == TAILSCALED else "another program"
        fix = f"set {key} in .env to another port; who holds it: sudo ss -lunp 'sport = :{port}'"
        return Finding("tailnet_ports", "failure", f"{port}/udp is held by {whose}", f"{service} cannot be started with it", fix)
    if port == TAILSCALED and shutil.which("tailscaled"):
        why = "the host has a Tailscale of its own, which takes it when it starts"
        return Finding("tailnet_ports", "warning", f"{key}={port} is tailscaled's own port", why, f"take {key} out of .env")
    return Finding("tailnet_ports", "ok", f"{port}/udp is free for {service}")


def free(port: int) -> bool:
    """Whether nobody has bound that UDP port, on any address; below 1024 Docker may what this user may not."""
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        try:
            sock.bind(("", port))
        except OSError as error:
            return error.errno != errno.EADDRINUSE
    return True
