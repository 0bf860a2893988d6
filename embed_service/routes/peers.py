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
NAMES_SECONDS = 30.0  # a container's name may get another address when it is made anew


class TrustedPeers:
    """TRUSTED_SIDECARS: addresses, networks and host names. Empty: every loopback and private peer, which is who reaches a port that is not
    published. A tailnet's own addresses are not among them: a peer without `serve` in between could write any header."""

    def __init__(self, sidecars: tuple[str, ...]) -> None:
        self._networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
        self._names: list[str] = []
        self._any_private = not sidecars
        self._resolved: frozenset[Address] = frozenset()
        self._resolved_at = float("-inf")
        for entry in sidecars:
            try:
                self._networks.append(ipaddress.ip_network(entry, strict=False))
            except ValueError:
                self._names.append(entry)

    async def trusts(self, scope: Scope) -> bool:
        """Whether the peer of this connection may speak for others."""
        if scope.get("client") is None:
            return True  # a Unix socket: whoever opens it is on this machine
        try:
            address = ipaddress.ip_address(scope["client"][0])
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        if self._any_private:
            return address.is_loopback or (address.is_private and address not in TAILNET)
        return any(address in network for network in self._networks) or address in await self._addresses()

    async def _addresses(self) -> frozenset[Address]:
        if self._names and time.monotonic() - self._resolved_at > NAMES_SECONDS:
            loop = asyncio.get_running_loop()
            found: set[Address] = set()
            for name in self._names:
                try:
                    answers = await loop.getaddrinfo(name, None, type=socket.SOCK_STREAM)
                except OSError:
                    continue  # the sidecar is down: nobody is it
                found.update(ipaddress.ip_address(answer[4][0]) for answer in answers)
            self._resolved, self._resolved_at = frozenset(found), time.monotonic()
        return self._resolved


async def caller_of(scope: Scope, peers: TrustedPeers) -> str:
    """`Tailscale-User-Login` where the peer is trusted, else the peer's address."""
    login = Headers(scope=scope).get("tailscale-user-login", "").strip()[:256]
    if login and await peers.trusts(scope):
        return login
    client = scope.get("client")
    return str(client[0]) if client else "local"
