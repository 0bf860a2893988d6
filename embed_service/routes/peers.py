"""Who calls: whether a peer's Tailscale-* headers are believed, and the name under which callers take turns."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time

from starlette.datastructures import Headers
from starlette.types import Scope

__all__ = ["TrustedPeers", "caller_of"]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
TAILNET = ipaddress.ip_network("fd7a:115c:a1e0::/48")  # Tailscale's IPv6 range, which is private by its prefix
RESOLVE_SECONDS = 2.0  # Docker answers for a container that runs in a millisecond; other names go on to servers that may be away


class TrustedPeers:
    """TRUSTED_SIDECARS: addresses, networks and host names. Empty: every loopback and private peer, which is who reaches a port that is not
    published. A tailnet's own addresses are not among them: a peer without `serve` in between could write any header.

    A name is looked up anew for each request that wants to be believed: a sidecar that was made anew has another address, and the
    old one may be another container's from that moment on. A name without an address is nobody.
    """

    def __init__(self, sidecars: tuple[str, ...]) -> None:
        self._networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
        self._names: list[str] = []
        self._any_private = not sidecars
        self._looking: dict[tuple[str, int], tuple[asyncio.Task[frozenset[Address]], float]] = {}  # the look-up, and when it began
        for entry in sidecars:
            try:
                self._networks.append(ipaddress.ip_network(entry, strict=False))
            except ValueError:
                self._names.append(entry)

    async def trusts(self, scope: Scope) -> bool:
        """Whether the peer of this connection may speak for others."""
        if scope.get("client") is None:
            return False  # so uvicorn says it of a connection that was reset before it was looked at: anybody can do that
        try:
            address = ipaddress.ip_address(scope["client"][0])
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        if self._any_private:
            return address.is_loopback or (address.is_private and address not in TAILNET)
        if any(address in network for network in self._networks):
            return True
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        for addresses in asyncio.as_completed([self._addresses(name, family) for name in self._names]):
            if address in await addresses:
                return True  # without waiting for the others
        return False

    async def is_a_sidecar(self, scope: Scope) -> bool:
        """Whether the peer is one that TRUSTED_SIDECARS names, on another address than loopback, from which any program could come."""
        client = scope.get("client")
        try:
            loopback = client is None or ipaddress.ip_address(client[0]).is_loopback
        except ValueError:
            return False
        return not self._any_private and not loopback and await self.trusts(scope)

    async def _addresses(self, name: str, family: int) -> frozenset[Address]:
        """Where `name` is now; nowhere where that is not known within RESOLVE_SECONDS."""
        key = (name, family)
        if key not in self._looking:
            task = asyncio.create_task(_look_up(name, family))
            self._looking[key] = task, time.monotonic()
            task.add_done_callback(lambda _: self._looking.pop(key))
        # Requests that come in the meantime share the answer: it cannot be ended, and holds a thread until it ends by itself.
        task, began = self._looking[key]
        await asyncio.wait({task}, timeout=max(0.0, began + RESOLVE_SECONDS - time.monotonic()))
        return task.result() if task.done() else frozenset()


async def _look_up(name: str, family: int) -> frozenset[Address]:
    try:
        answers = await asyncio.get_running_loop().getaddrinfo(name, None, family=family, type=socket.SOCK_STREAM)
        return frozenset(ipaddress.ip_address(answer[4][0]) for answer in answers)
    except (OSError, UnicodeError):  # no such name, a name server that is away; a name that can be none
        return frozenset()


async def caller_of(scope: Scope, peers: TrustedPeers) -> str:
    """`Tailscale-User-Login` where the peer is trusted, else the peer's address."""
    logins = Headers(scope=scope).getlist("tailscale-user-login")
    login = logins[0].strip()[:256] if len(logins) == 1 else ""  # `serve` writes one; of several somebody else wrote some
    if login and await peers.trusts(scope):
        return login
    client = scope.get("client")
    return str(client[0]) if client else "local"
