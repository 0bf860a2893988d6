"""What the tailscale of this machine knows: the tailnet, its nodes, the path to one."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qmdctl.errors import MissingError
from qmdctl.process import ProcessError, run

# On PATH under either name: inside WSL it may be Windows' own. The others are where installers put it without touching PATH.
PROGRAMS = (
    "tailscale",
    "tailscale.exe",
    "/Applications/Tailscale.app/Contents/MacOS/Tailscale",
    "/mnt/c/Program Files/Tailscale/tailscale.exe",
    r"C:\Program Files\Tailscale\tailscale.exe",
)
ANSWER_SECONDS = 10
PINGS = 3  # the first may go through a relay while a direct path is looked for
PING_SECONDS = 2
PONG = re.compile(r"^pong from .*? via (?P<via>\S+) in (?P<time>\S+)$", re.MULTILINE)
RELAYED = re.compile(r"^(?P<kind>DERP|peer-relay)\((?P<name>.*)\)$")


@dataclass(frozen=True)
class Node:
    """A machine of the tailnet. `name` is its full DNS name without the last dot, `host_name` what it calls itself.

    `routes` are the addresses that it answers for: its own and those of Services. `direct`, `relay` and `peer_relay` are the path as it
    is now; all may be empty where nothing was sent for a while.
    """

    name: str
    host_name: str
    addresses: tuple[str, ...]
    routes: tuple[str, ...]
    online: bool
    last_seen: str
    direct: str
    relay: str
    peer_relay: str
    this_machine: bool = False
    user: str = ""
    tags: tuple[str, ...] = ()

    def same_owner(self, other: Node) -> bool:
        """Whether both have the same tags or, without any, the same user: a name alone is anybody's to take."""
        if self.tags or other.tags:
            return self.tags == other.tags
        return bool(self.user) and self.user == other.user

    @property
    def label(self) -> str:
        return self.name.split(".", 1)[0]


@dataclass(frozen=True)
class Tailnet:
    """What `tailscale status --json` said. `state` is Running, Stopped, NeedsLogin, NeedsMachineAuth, Starting or NoState."""

    program: str
    version: str
    state: str
    suffix: str  # of its nodes' names, without a dot at either end
    magic_dns: bool  # of the tailnet; a machine may leave it unused
    this: Node | None
    peers: tuple[Node, ...]

    @property
    def running(self) -> bool:
        return self.state == "Running"

    def nodes(self) -> Iterator[Node]:
        yield from self.peers
        if self.this:
            yield self.this

    def named(self, name: str) -> list[Node]:
        """The nodes with this full DNS name, those that are online first; some control servers give one name twice."""
        return sorted((node for node in self.nodes() if node.name == name.rstrip(".").lower()), key=lambda node: not node.online)

    def hosts(self, address: str) -> list[Node]:
        """Who answers for an address: its node, or those that host the Service."""
        return [node for node in self.nodes() if address in node.addresses or address in node.routes]

    def owns(self, name: str) -> bool:
        """Whether a name is one that MagicDNS answers."""
        return name.endswith(".ts.net") or bool(self.suffix and name.endswith("." + self.suffix)) or bool(self.named(name))


@dataclass(frozen=True)
class Pong:
    """The way that a ping took: `direct` address, `relay` or `peer_relay`; one of them is not empty."""

    direct: str
    relay: str
    peer_relay: str
    time: str


def find_program(environment: Mapping[str, str] = os.environ) -> str | None:
    return next((found for name in PROGRAMS if (found := shutil.which(name, path=environment.get("PATH")))), None)


def read_tailnet() -> Tailnet:
    """MissingError when there is no tailscale here, its daemon does not run, or its answer is none."""
    program = find_program()
    if program is None:
        raise MissingError(
            "There is no tailscale command on this machine",
            "install it from https://tailscale.com/download and log in, or name the addresses: --embed-url https://NAME --generate-url URL",
        )
    try:
        done = run([program, "status", "--json"], timeout_seconds=ANSWER_SECONDS)
        data = json.loads(done.stdout)
        return parse(program, data)
    except ProcessError as error:
        said = error.completed.stderr.strip() or error.message
        raise MissingError(f"tailscale does not answer: {said[:300]}", start_it(program)) from None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise MissingError(f"{program} status --json answered something else: {error}", "update Tailscale on this machine") from None


def start_it(program: str) -> str:
    if program.endswith(".exe") or "/Applications/" in program:
        return "start the Tailscale app and log in"
    return "start it: sudo systemctl enable --now tailscaled, then: sudo tailscale up"


def require_running(tailnet: Tailnet) -> None:
    """MissingError when this machine is not on the tailnet now; its fix says how it gets there."""
    if not tailnet.running:
        raise MissingError(*state_of(tailnet))


def state_of(tailnet: Tailnet) -> tuple[str, str]:
    """What a machine that is not Running lacks, and the fix."""
    return {
        "NeedsLogin": ("Tailscale is logged out on this machine", "sudo tailscale up (or log in with its app)"),
        "Stopped": ("Tailscale is switched off on this machine", "sudo tailscale up (or switch it on in its app)"),
        "NeedsMachineAuth": (
            "This machine waits for approval on the tailnet",
            "approve it: https://login.tailscale.com/admin/machines",
        ),
    }.get(tailnet.state, (f"Tailscale on this machine is not ready: {tailnet.state}", "wait a moment; then: tailscale status"))


def ping(tailnet: Tailnet, address: str) -> Pong | None:
    """The way that the last of up to `PINGS` pings took; None when none came back."""
    command = [tailnet.program, "ping", f"-c={PINGS}", f"--timeout={PING_SECONDS}s", address]
    try:
        done = run(command, check=False, timeout_seconds=PINGS * (PING_SECONDS + 1) + 5)
    except (ProcessError, MissingError):
        return None
    pongs = list(PONG.finditer(done.stdout))
    if not pongs:
        return None
    via, took = pongs[-1]["via"], re.sub(r"^([\d.]+)([a-zµ]+)$", r"\1 \2", pongs[-1]["time"])
    took = "less than 1 ms" if took == "0 s" else took
    relayed = RELAYED.match(via)
    if relayed is None:
        return Pong(via, "", "", took)
    return Pong("", relayed["name"], "", took) if relayed["kind"] == "DERP" else Pong("", "", relayed["name"], took)


def parse(program: str, data: dict[str, Any]) -> Tailnet:
    """From the JSON document. Names are lower-case, without the last dot."""
    current = data.get("CurrentTailnet") or {}
    this, peers = data.get("Self"), data.get("Peer") or {}
    return Tailnet(
        program=program,
        version=str(data.get("Version", "")).split("-")[0],
        state=str(data["BackendState"]),
        suffix=str(current.get("MagicDNSSuffix") or data.get("MagicDNSSuffix") or "").strip(".").lower(),
        magic_dns=bool(current.get("MagicDNSEnabled", True)),
        this=_node(this, this_machine=True) if this else None,
        peers=tuple(sorted((_node(peer) for peer in peers.values()), key=lambda node: node.name)),
    )


def _node(data: dict[str, Any], *, this_machine: bool = False) -> Node:
    return Node(
        name=str(data.get("DNSName") or "").rstrip(".").lower(),
        host_name=str(data.get("HostName") or "").lower(),
        addresses=tuple(data.get("TailscaleIPs") or ()),
        routes=tuple(route.split("/")[0] for route in data.get("AllowedIPs") or () if route.endswith(("/32", "/128"))),
        online=bool(data.get("Online")) or this_machine,
        last_seen=str(data.get("LastSeen") or ""),
        direct=str(data.get("CurAddr") or ""),
        relay=str(data.get("Relay") or ""),
        peer_relay=str(data.get("PeerRelay") or ""),
        this_machine=this_machine,
        user=str(data.get("UserID") or ""),
        tags=tuple(sorted(data.get("Tags") or ())),
    )
