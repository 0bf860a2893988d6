"""The chain from this laptop to true answers, link by link."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

from qmdctl.errors import QmdError
from qmdctl.laptop import dial
from qmdctl.laptop.names import Names, Resolve
from qmdctl.laptop.path import UDP_PORTS, path_to
from qmdctl.laptop.requests import LaptopProbe
from qmdctl.laptop.tailscale import Tailnet, start_it, state_of
from qmdctl.probes import Broken, Link, try_link

# 8000 and 8001 are vLLM's and the embed service's own, without a certificate and, on vLLM, without a key; 9002 is the sidecar's health.
CLOSED_PORTS = (8000, 8001, 9002)
REQUESTS = {"embed": ("embedding", "rerank"), "vllm": ("completion", "chat")}
FORWARDED = {"completion": "forwarded completion", "chat": "forwarded chat"}


@dataclass
class Proof:
    """The links and what the answers told beside."""

    links: list[Link] = field(default_factory=list)
    models: dict[str, str] = field(default_factory=dict)  # by request
    fingerprint: str = ""

    @property
    def broken(self) -> Link | None:
        return next((link for link in self.links if link.ok is False), None)


@dataclass
class Laptop:
    """Where the proof starts from. `tailnet` is None where this machine has no tailscale, for the reason `without`."""

    tailnet: Tailnet | None = None
    without: str = ""
    key: str | None = None
    timeout_seconds: float = 30.0
    udp_ports: Mapping[str, str] = field(default_factory=lambda: UDP_PORTS)
    resolve: Resolve = dial.lookup


def prove(names: Names, laptop: Laptop) -> Proof:
    """Try every link; what hangs on a broken one is not tried."""
    proof = Proof([machine(names, laptop)])
    prove_name(proof, "embed", names.embed, laptop, forwards=not names.generate)
    if names.generate:
        prove_name(proof, "vllm", names.generate, laptop)
    return proof


def machine(names: Names, laptop: Laptop) -> Link:
    """This machine's own place on the tailnet."""
    hosts = [urlsplit(url).hostname or "" for url in (names.embed, names.generation)]
    tailnet = laptop.tailnet
    if tailnet is None:
        return Link("laptop", "tailscale", detail=f"not tried: {laptop.without}")
    needed = any(tailnet.owns(host) for host in hosts)
    if not tailnet.running:
        why, fix = state_of(tailnet)
        return Link("laptop", "tailscale", False if needed else None, detail=why, fix=fix)
    address = tailnet.this.addresses[0] if tailnet.this and tailnet.this.addresses else "no address"
    return Link("laptop", "tailscale", True, detail=f"{tailnet.version}, {address} in {tailnet.suffix}")


def prove_name(proof: Proof, service: str, url: str, laptop: Laptop, *, forwards: bool = False) -> None:
    """Name, port, certificate, /health, each true request, closed ports, the path."""
    parts = urlsplit(url)
    host, secure = parts.hostname or "", parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    addresses: list[str] = []
    start = len(proof.links)

    def add(name: str, action: Callable[[], str | tuple[str, str]], after: bool = True) -> bool:
        proof.links.append(_try(service, name, action) if after else Link(service, name))
        return proof.links[-1].ok is True

    def name() -> str:
        addresses.extend(resolved(host, laptop))
        return ", ".join(addresses[:2])

    reached = named = add("name", name)
    reached = add(f"port {port}", lambda: dial.connect(host, port, unreachable_fix(host, port, service, laptop)), reached)
    context = _trust(secure)
    if secure:
        reached = add("certificate", lambda: dial.certificate(host, port, context, full_name(host, laptop)), reached)
    else:
        proof.links.append(Link(service, "certificate", detail=f"not tried: {url} is plain HTTP"))
    # Never through a proxy of the environment: the name is this machine's to reach, over WireGuard, and means nothing to a proxy.
    with httpx.Client(trust_env=False, verify=context if secure else False) as client:
        probe = LaptopProbe(service, url, laptop.timeout_seconds, laptop.key, client)
        reached = add("/health", probe.health, reached)
        requests = {one: one for one in REQUESTS[service]} | (FORWARDED if forwards else {})
        for request, title in requests.items():
            if add(title, getattr(probe, request), reached):
                _note_seen(proof, request, probe.seen)
    nodes = addresses_of_nodes(addresses, laptop)
    if named and not nodes:
        proof.links.append(Link(service, "closed ports", detail=f"not tried: {host} is no node of a tailnet"))
    else:
        add("closed ports", lambda: closed(nodes, service), named)
    proof.links.append(_path(service, addresses, laptop) if named else Link(service, "path"))
    for link in proof.links[start:]:
        link.detail = link.detail or "not tried"


def _try(service: str, name: str, action: Callable[[], str | tuple[str, str]]) -> Link:
    """As try_link; an action may also return what is to be done although the link holds."""
    hint = ""

    def told() -> str:
        nonlocal hint
        seen = action()
        detail, hint = (seen, "") if isinstance(seen, str) else seen
        return detail

    link = try_link(service, name, told)
    link.fix = link.fix or hint
    return link


def resolved(host: str, laptop: Laptop) -> list[str]:
    """A host's addresses. Broken where there are none, or where they are not those of the tailnet's name."""
    addresses = laptop.resolve(host)
    tailnet = laptop.tailnet
    if not addresses:
        raise Broken(f"{host} does not resolve{_why_unresolved(host, tailnet)[0]}", _why_unresolved(host, tailnet)[1])
    node = tailnet.node(host) if tailnet else None
    strangers = [address for address in addresses if not dial.in_tailnet(address)] if host.endswith(".ts.net") else []
    if strangers:
        raise Broken(
            f"{host} resolves to {strangers[0]}, which is no address of a tailnet: another resolver than MagicDNS answers, or Funnel is on",
            "tailscale set --accept-dns=true; tailscale dns status; Funnel must be off for this node",
        )
    if node and not set(addresses) & set(node.addresses):
        raise Broken(
            f"{host} resolves to {addresses[0]}, but the node of that name has {', '.join(node.addresses) or 'no address'}",
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
    if tailnet.node(host):
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


def unreachable_fix(host: str, port: int, service: str, laptop: Laptop) -> str:
    """What to do where the port does not answer."""
    node = laptop.tailnet.node(host) if laptop.tailnet else None
    if node and not node.online:
        return f"the node is offline; {dial.WHERE}qmdctl status; qmdctl start ts-{service}"
    if laptop.tailnet and not laptop.tailnet.running:
        return start_it(laptop.tailnet.program)
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


def addresses_of_nodes(addresses: list[str], laptop: Laptop) -> list[str]:
    """Where ports have to be closed: the name's own addresses on the tailnet, and those of the nodes behind a Service."""
    nodes = [node for address in addresses for node in (laptop.tailnet.hosts(address) if laptop.tailnet else []) if not node.this_machine]
    own = [address for address in addresses if dial.in_tailnet(address)]
    return list(dict.fromkeys([*own, *(address for node in nodes for address in node.addresses[:1])]))


def closed(addresses: list[str], service: str) -> str:
    """Broken when a port that should be closed is open."""
    found = dial.open_ports(addresses, CLOSED_PORTS)
    if found:
        raise Broken(
            f"{', '.join(found)} open to the tailnet: a way past certificate, API keys and capability",
            f"{dial.WHERE}qmdctl doctor; ports are published on 127.0.0.1 alone, and the policy lets nothing but port 443 through",
        )
    return f"{', '.join(map(str, CLOSED_PORTS))} are closed"


def _path(service: str, addresses: list[str], laptop: Laptop) -> Link:
    if laptop.tailnet is None:
        return Link(service, "path", detail=f"not tried: {laptop.without}")
    if not laptop.tailnet.running:
        return Link(service, "path", detail=f"not tried: {state_of(laptop.tailnet)[0]}")
    hosts = [node for address in addresses for node in laptop.tailnet.hosts(address)]
    if not hosts:
        return Link(service, "path", detail="not tried: no node that tailscale knows has this address")
    tailnet, node = laptop.tailnet, hosts[0]
    return _try(service, "path", lambda: path_to(tailnet, node, laptop.udp_ports.get(service) or UDP_PORTS[service]))


def _note_seen(proof: Proof, request: str, seen: dict[str, str]) -> None:
    """The model and the fingerprint: into the proof, and into the link that was just added."""
    link = proof.links[-1]
    if "model" in seen:
        proof.models[request] = seen["model"]
        link.detail += f"; {seen['model']}"
    if "fingerprint" in seen and request == "embedding":
        proof.fingerprint = seen["fingerprint"]
        link.detail += f", fingerprint {seen['fingerprint']}"


def _trust(secure: bool) -> Any:
    return dial.trust() if secure else None


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


def look(read: Callable[[], Tailnet]) -> tuple[Tailnet | None, str]:
    """This machine's tailnet, or why it is not known."""
    try:
        return read(), ""
    except QmdError as error:
        return None, error.message
