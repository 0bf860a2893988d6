"""What this laptop can say of a name that does not lead there, with the help of its tailscale."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from qmdctl.errors import QmdError
from qmdctl.laptop import dial
from qmdctl.laptop.names import Names, Resolve
from qmdctl.laptop.path import UDP_PORTS, Ping
from qmdctl.laptop.tailscale import Tailnet, ping, start_it, state_of
from qmdctl.probes import Broken


@dataclass
class Laptop:
    """Where the proof starts from. `tailnet` is None where this machine has no tailscale, for the reason `without`."""

    tailnet: Tailnet | None = None
    without: str = ""
    key: str | None = None
    timeout_seconds: float = 30.0
    udp_ports: Mapping[str, str] = field(default_factory=lambda: UDP_PORTS)
    resolve: Resolve = dial.lookup
    ping: Ping = ping


def look(read: Callable[[], Tailnet]) -> tuple[Tailnet | None, str]:
    """This machine's tailnet, or why it is not known."""
    try:
        return read(), ""
    except QmdError as error:
        return None, error.message


def resolved(host: str, laptop: Laptop) -> list[str]:
    """A host's addresses. Broken where there are none, or where they are not those of the tailnet's name."""
    addresses = laptop.resolve(host)
    tailnet = laptop.tailnet
    if not addresses:
        raise Broken(f"{host} does not resolve{_why_unresolved(host, tailnet)[0]}", _why_unresolved(host, tailnet)[1])
    own = [address for node in (tailnet.named(host) if tailnet else []) for address in node.addresses]
    strangers = [address for address in addresses if not dial.in_tailnet(address)] if host.endswith(".ts.net") else []
    if strangers:
        raise Broken(
            f"{host} resolves to {strangers[0]}, which is no address of a tailnet: another resolver than MagicDNS answers, or Funnel is on",
            "tailscale set --accept-dns=true; tailscale dns status; Funnel must be off for this node",
        )
    if own and not set(addresses) & set(own):
        raise Broken(
            f"{host} resolves to {addresses[0]}, but the node of that name has {', '.join(own)}",
            "remove the name from this machine's hosts file, or its resolver's cache",
        )
    return addresses


def _why_unresolved(host: str, tailnet: Tailnet | None) -> tuple[str, str]:
    if tailnet is None:
        on = ": this machine has no tailscale" if host.endswith(".ts.net") else ""
        return on, "install Tailscale and log in: https://tailscale.com/download" if on else "is the name right?"
    if not tailnet.running:
        return f": {state_of(tailnet)[0]}", state_of(tailnet)[1]
    if not tailnet.magic_dns:
        return ": MagicDNS is off on this tailnet", "switch MagicDNS on: https://login.tailscale.com/admin/dns"
    if tailnet.named(host):
        return (
            ", although the tailnet has that node: this machine does not ask MagicDNS",
            "tailscale set --accept-dns=true; tailscale dns status",
        )
    if "." not in host:
        return "", f"give the full name, https://{host}.{tailnet.suffix}"
    return (
        f", and {tailnet.suffix} has no such node that this machine sees",
        "qmdctl test without addresses finds the names; tailscale status",
    )


def silence(addresses: list[str], service: str, laptop: Laptop, error: Broken) -> tuple[bool, Broken]:
    """What a port's silence means: (whether the node is offline, the broken link).

    A ping passes by the tailnet's policy, a port does not.
    """
    hosts = [node for address in addresses for node in (laptop.tailnet.hosts(address) if laptop.tailnet else [])]
    if laptop.tailnet is None or not laptop.tailnet.running or not hosts or not hosts[0].addresses:
        return False, error
    pong = laptop.ping(laptop.tailnet, hosts[0].addresses[0])
    if pong is None:
        fix = f"{dial.WHERE}qmdctl status; qmdctl start ts-{service}"
        return True, Broken(f"{hosts[0].name} answers neither there nor to a ping: it is offline", fix)
    return False, Broken(
        f"{hosts[0].name} answers a ping, but not there: the tailnet's policy does not let this machine in",
        "the tailnet's owner grants this machine port 443 of the node in the policy (docs/tailnet-policy.md)",
    )


def unreachable_fix(host: str, port: int, service: str, laptop: Laptop) -> str:
    """What to do where the port does not answer."""
    nodes = laptop.tailnet.named(host) if laptop.tailnet else []
    if nodes and not nodes[0].online:
        return f"the node is offline; {dial.WHERE}qmdctl status; qmdctl start ts-{service}"
    if laptop.tailnet and not laptop.tailnet.running:
        return start_it(laptop.tailnet.program)
    if port == 80 and host.endswith(".ts.net"):
        return f"https://{host}"
    if not host.endswith(".ts.net") and not (laptop.tailnet and laptop.tailnet.owns(host)):
        return "is the address right, and does the service run there?"
    return f"{dial.WHERE}qmdctl health (is the serve config in force?); the tailnet's policy must let this machine reach port {port}"


def full_name(host: str, laptop: Laptop) -> str:
    """What a short name or an address should have been, where the tailnet tells."""
    if laptop.tailnet is None:
        return ""
    for node in laptop.tailnet.nodes():
        if host in (node.label, *node.addresses):
            return node.name
    return f"{host}.{laptop.tailnet.suffix}" if host.isidentifier() or "-" in host else ""


def proxy_note(names: Names, environment: Mapping[str, str] = os.environ) -> str:
    """What a proxy in the environment does to other programs' requests to these names; empty where there is none in the way."""
    proxies = {
        name.upper(): value for name, value in environment.items() if name.upper() in ("HTTPS_PROXY", "ALL_PROXY", "NO_PROXY") and value
    }
    hosts = [urlsplit(url).hostname or "" for url in (names.embed, names.generate) if url.startswith("https://")]
    exempt = [entry.strip().lstrip("*").lstrip(".") for entry in proxies.pop("NO_PROXY", "").split(",") if entry.strip()]
    behind = [host for host in hosts if not any(entry == "" or host == entry or host.endswith("." + entry) for entry in exempt)]
    if not proxies or not behind:
        return ""
    return (
        f"{', '.join(proxies)} is set. qmdctl goes to these names directly, as Node does; curl and Bun would ask the proxy, which does not "
        f"know them: export NO_PROXY={','.join(dict.fromkeys('.' + host.split('.', 1)[-1] for host in behind))}"
    )
