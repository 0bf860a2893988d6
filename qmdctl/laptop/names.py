"""Which two addresses: given, told by the sidecars of a project that is here, or found by the tailscale of this machine."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from qmdctl.errors import ConfigurationError, QmdError
from qmdctl.laptop.dial import lookup
from qmdctl.laptop.tailscale import Node, Tailnet, read_tailnet, require_running

SERVICES = ("embed", "vllm")
HOSTNAMES = {"embed": "qmd-embed", "vllm": "qmd-vllm"}
HOSTNAME_KEYS = {"embed": "EMBED_HOSTNAME", "vllm": "VLLM_HOSTNAME"}
OPTIONS = {"embed": "--embed-url", "vllm": "--generate-url"}
MACHINES = "https://login.tailscale.com/admin/machines"

Resolve = Callable[[str], list[str]]  # a name's addresses; none where it has none


@dataclass
class Names:
    """The addresses, as URLs without a path or a slash at the end; `generate` is empty where embed's address serves generation too.

    `origins` says where each comes from, `notes` what the user should know of the search.
    """

    embed: str
    generate: str = ""
    origins: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    twins: list[str] = field(default_factory=list)  # services whose address has a number behind the name that was looked for

    @property
    def generation(self) -> str:
        """Where text is generated."""
        return self.generate or self.embed

    def payload(self) -> dict[str, Any]:
        return {
            "embed_url": self.embed,
            "generate_url": self.generation,
            "one_url_for_both": not self.generate,
            "origins": self.origins,
        }


@dataclass(frozen=True)
class Found:
    """A name on the tailnet and what is to be said of it."""

    name: str
    note: str = ""
    twin: bool = False


class NotFound(QmdError):
    """The tailnet, as this machine sees it, has no such node."""


def choose_names(
    embed: str | None,
    generate: str | None,
    hostnames: Mapping[str, str] = HOSTNAMES,
    *,
    box: Mapping[str, str] | None = None,
    look: Callable[[], Tailnet] = read_tailnet,
    resolve: Resolve = lookup,
) -> Names:
    """The addresses to use. `box` are the names that a project's own sidecars told, by service.

    Without embed's address QmdError when it is not to be found; generation falls back to embed's address, with a note.
    """
    given = {"embed": url_of(embed, OPTIONS["embed"]) if embed else "", "vllm": url_of(generate, OPTIONS["vllm"]) if generate else ""}
    urls, origins, notes = dict(given), {service: "given" for service in SERVICES if given[service]}, []
    twins: list[str] = []
    for service, name in (box or {}).items():
        if not urls[service]:
            urls[service], origins[service] = f"https://{name}", "its sidecar here"
    # An embed service on this very machine is for trying: the tailnet's vLLM is not its partner.
    local = bool(given["embed"]) and is_loopback(urlsplit(given["embed"]).hostname or "")
    missing = [service for service in SERVICES if not urls[service] and not (service == "vllm" and local)]
    reason = f"{OPTIONS['vllm']} is not given and {given['embed']} is this machine" if local else ""
    if missing:
        try:
            tailnet = look()
            require_running(tailnet)
        except QmdError as error:
            if "embed" in missing:
                raise
            missing, reason = [], error.message
        for service in missing:
            try:
                found = find_name(tailnet, hostnames.get(service) or HOSTNAMES[service], resolve)
            except NotFound as error:
                if service == "embed":
                    raise
                reason = error.message
                continue
            urls[service], origins[service] = f"https://{found.name}", "found on the tailnet"
            notes += [found.note] if found.note else []
            twins += [service] if found.twin else []
            if not found.name.endswith("." + tailnet.suffix):
                notes.append(f"{found.name} is of another tailnet than {tailnet.suffix}: it is shared into this one. Is it yours to use?")
    if not urls["vllm"]:
        origins["vllm"] = "the embed service's address"
        notes.append(f"Text generation goes through {urls['embed']} too (single-URL mode): {reason}.")
    return Names(urls["embed"], urls["vllm"] if urls["vllm"] != urls["embed"] else "", origins, notes, twins)


def find_name(tailnet: Tailnet, wanted: str, resolve: Resolve = lookup) -> Found:
    """The full name that answers for `wanted`: its node, a Tailscale Service, or a node that was registered twice or renamed.

    NotFound where there is none.
    """
    wanted = wanted.lower()
    again = re.compile(rf"{re.escape(wanted)}-\d+")
    # Of several tailnets (a node may be shared into this one) the own comes first.
    nodes = sorted(tailnet.nodes(), key=lambda node: (not node.name.endswith("." + tailnet.suffix), node.name))
    exact = [node for node in nodes if node.label == wanted]
    twins = [node for node in nodes if again.fullmatch(node.label)]
    alive = [node for node in twins if node.online]
    if exact:
        strangers = [node for node in alive if not node.same_owner(exact[0])]
        alive = [node for node in alive if node not in strangers]
        if strangers and not alive and not exact[0].online:
            return Found(exact[0].name, f"{_of_exact(exact[0], [])} {strangers[0].name} is alive, but of another owner: it is not used.")
    if exact and (exact[0].online or not alive):
        return Found(exact[0].name, _of_exact(exact[0], alive))
    if exact:
        return Found(
            alive[0].name,
            f"{wanted} was registered twice: {exact[0].name} is offline{_since(exact[0])}, {alive[0].name} is alive and is used. "
            f"Remove the old machine at {MACHINES} and rename {alive[0].label} to {wanted} there; then every client's address holds again.",
            twin=True,
        )
    service = f"{wanted}.{tailnet.suffix}"
    if tailnet.suffix and resolve(service):
        return Found(service, f"{service} is no node but resolves: a Tailscale Service.")
    if alive or twins:
        node = (alive or twins)[0]
        return Found(node.name, f"There is no {wanted}, but {node.name}: rename it at {MACHINES} to have the plain name.", twin=True)
    renamed = [node for node in nodes if node.host_name == wanted]
    if renamed:
        return Found(renamed[0].name, f"The machine that calls itself {wanted} has the name {renamed[0].name} on the tailnet.")
    raise not_found(tailnet, wanted)


def _of_exact(node: Node, alive: list[Node]) -> str:
    if not node.online:
        return f"{node.name} is offline{_since(node)}. On the GPU box: qmdctl status."
    if alive:
        return f"{alive[0].name} is alive as well as {node.name}, which is used: of two boxes, or of one that was registered twice."
    return ""


def _since(node: Node) -> str:
    return f" since {node.last_seen}" if node.last_seen and not node.last_seen.startswith("0001") else ""


def not_found(tailnet: Tailnet, wanted: str) -> NotFound:
    like = [node.name for node in tailnet.peers if re.search(r"qmd|embed|vllm", node.label)]
    seen = f" Of its nodes these come near: {', '.join(like[:5])}." if like else ""
    return NotFound(
        f"No node of {tailnet.suffix or 'the tailnet'} that this machine sees is called {wanted}.{seen}",
        "on the GPU box: qmdctl status (are the sidecars logged in to this tailnet?); a machine that the policy does not let reach it does "
        f"not see it either: {MACHINES}. Or name the addresses: --embed-url https://NAME --generate-url https://NAME",
    )


def url_of(text: str, option: str) -> str:
    """An address as `scheme://host[:port]`. Without a scheme it is https; `/v1` and slashes at the end are dropped.

    ConfigurationError for what is no address.
    """
    url = text.strip() if "://" in text else f"https://{text.strip()}"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise ConfigurationError(f"{option}: {text!r} is no address: {error}", f"{option} https://qmd-embed.TAILNET.ts.net") from None
    path = re.sub(r"(/v1)?/*$", "", parts.path)
    if parts.scheme not in ("http", "https") or not re.fullmatch(r"[\w.:%-]+", host) or path or parts.query or parts.username is not None:
        raise ConfigurationError(
            f"{option}: {text!r} is no address of the form https://NAME[:PORT]", f"{option} https://qmd-embed.TAILNET.ts.net"
        )
    host = f"[{host}]" if ":" in host else host.rstrip(".")
    return f"{parts.scheme}://{host}" + (f":{port}" if port else "")


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
