"""The chain from this laptop to true answers, link by link."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

from qmdctl.laptop import dial
from qmdctl.laptop.names import Names
from qmdctl.laptop.path import UDP_PORTS, path_to
from qmdctl.laptop.reach import Laptop, full_name, resolved, silence, unreachable_fix
from qmdctl.laptop.requests import LaptopProbe
from qmdctl.laptop.tailscale import state_of
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

    def add(name: str, action: Callable[[], str | tuple[str, str]], after: bool = True) -> bool:
        proof.links.append(_try(service, name, action) if after else Link(service, name))
        return proof.links[-1].ok is True

    def name() -> str:
        addresses.extend(resolved(host, laptop))
        return ", ".join(addresses[:2])

    reached = named = add("name", name)
    offline = False

    def connect() -> str:
        nonlocal offline
        try:
            return dial.connect(host, port, unreachable_fix(host, port, service, laptop))
        except dial.Silent as error:
            offline, told = silence(addresses, service, laptop, error)
            raise told from None

    reached = add(f"port {port}", connect, reached)
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
    if offline:
        proof.links += [Link(service, "closed ports"), Link(service, "path")]
        return
    if named and not nodes:
        proof.links.append(Link(service, "closed ports", detail=f"not tried: {host} is no node of a tailnet"))
    else:
        add("closed ports", lambda: closed(nodes, service), named)
    proof.links.append(_path(service, addresses, laptop) if named else Link(service, "path"))


def _try(service: str, name: str, action: Callable[[], str | tuple[str, str]]) -> Link:
    """As try_link; an action may also return what is to be done although the link holds."""
    hint = ""

    def told() -> str:
        nonlocal hint
        seen = action()
        detail, hint = (seen, "") if isinstance(seen, str) else seen
        return detail

    try:
        link = try_link(service, name, told)
    except dial.Untried as error:
        return Link(service, name, detail=f"not tried: {error}")
    link.fix = link.fix or hint
    return link


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
    return _try(service, "path", lambda: path_to(tailnet, node, laptop.udp_ports.get(service) or UDP_PORTS[service], laptop.ping))


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
