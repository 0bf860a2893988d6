"""Which host names a browser may use for this service, and which pages may use a browser to compute here.

DNS rebinding: a page at http://evil.example:8001 has its name point to 127.0.0.1, and the browser takes the answers of this port for that
page's own. What gives it away is the Host header, which says evil.example. Only browsers can be used like that: any other program chooses
its addresses itself. So a Host that nobody knows is refused (421, naming ALLOWED_HOSTS) where the request comes from a browser, and on the
paths that only browsers have a use for (BROWSER_PATHS). Another client is answered under whatever name its owner gave this machine: a QMD
client that is refused keeps zero scores for good, and there are reverse proxies, names in /etc/hosts and control servers with domains of
their own.

A browser is known by Origin, which it sends with every POST; by Sec-Fetch-Site; or by a User-Agent that begins with "Mozilla/". A script
can forge the last in some browsers, so it could still read what the other GET paths tell (models, version, counts); it cannot compute.

Known without a setting: addresses, since rebinding needs a name; names without a dot (containers, this machine), and those below RESERVED,
which nobody can register; and whatever name leads through a sidecar of TRUSTED_SIDECARS: it has a certificate for its own name alone.

Pages elsewhere: without CORS headers they read no answer, but a body without a media type needs no permission to be sent. A POST that a
browser says is another site's is refused (403 cross_origin). Extensions and desktop programs have origins of their own schemes and pass.
"""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from embed_service.errors import Forbidden, Misdirected
from embed_service.routes.paths import ASSET_PATHS
from embed_service.routes.peers import TrustedPeers

__all__ = ["BROWSER_PATHS", "HostMiddleware", "KnownHosts", "from_another_site", "host_of", "looks_like_a_browser"]

# RFC 6761, RFC 6762, RFC 8375, ICANN's resolution of July 2024; names below ts.net are given by Tailscale alone.
RESERVED = ("localhost", "local", "home.arpa", "internal", "ts.net")
BROWSER_PATHS = frozenset({"/stats", "/docs"}) | ASSET_PATHS
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
DEFAULT_PORTS = {"http": 80, "https": 443}


class KnownHosts:
    """`allowed`: names, `*.example.com` for every name below it, or `*` (ALLOWED_HOSTS)."""

    def __init__(self, allowed: tuple[str, ...], own_name: str | None = None) -> None:
        self._names = frozenset(name.lower() for name in allowed if not name.startswith("*"))
        self._below = tuple(name[1:].lower() for name in allowed if name.startswith("*."))
        self._any = "*" in allowed
        self._own = (socket.gethostname() if own_name is None else own_name).lower()

    def knows(self, host: str) -> bool:
        """Whether this may be our name. `host`: of a Host header without its port (see `host_of`)."""
        if self.allows(host) or "." not in host or host == self._own:
            return True
        if host.endswith(tuple(f".{name}" for name in RESERVED)):
            return True
        try:
            ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            return False
        return True

    def allows(self, host: str) -> bool:
        """Whether ALLOWED_HOSTS names it."""
        return self._any or host in self._names or host.endswith(self._below)


def host_of(authority: str) -> str:
    """`Host: name:port` or `[address]:port` → the name or address, in lower case, without the root's dot."""
    authority = authority.strip().lower()
    if authority.startswith("["):
        return authority[1:].partition("]")[0]
    name, colon, port = authority.rpartition(":")
    return (name if colon and not port.strip("0123456789") else authority).removesuffix(".")


def looks_like_a_browser(headers: Headers) -> bool:
    return "origin" in headers or "sec-fetch-site" in headers or headers.get("user-agent", "").startswith("Mozilla/")


def from_another_site(headers: Headers, known: KnownHosts) -> str | None:
    """The origin of the page elsewhere that had a browser send this, or None. Origins that ALLOWED_HOSTS names are not elsewhere."""
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    if site in ("same-origin", "none") or (site is None and origin is None):
        return None
    scheme, _, authority = (origin or "").partition("://")
    if authority and scheme not in DEFAULT_PORTS:
        return None  # chrome-extension://, app://, vscode-webview://: a program that its user installed
    if authority and known.allows(host_of(authority)):
        return None
    if authority and site is None and _same_place(f"{scheme}://{authority}", headers.get("host", "")):
        return None
    return origin or "another site"


def _same_place(origin: str, host: str) -> bool:
    try:
        here, there = urlsplit(origin), urlsplit(f"//{host}")
        port = here.port or DEFAULT_PORTS[here.scheme]
        return here.hostname == there.hostname and port == (there.port or DEFAULT_PORTS[here.scheme])
    except ValueError:
        return False


class HostMiddleware:
    """Raises Misdirected and Forbidden; the layer outside it answers them."""

    def __init__(self, app: ASGIApp, known: KnownHosts, peers: TrustedPeers) -> None:
        self.app = app
        self._known = known
        self._peers = peers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            if scope["path"] in BROWSER_PATHS or looks_like_a_browser(headers):
                await self._check_host(scope, headers)
            if scope["method"] not in SAFE_METHODS and (origin := from_another_site(headers, self._known)):
                message = f"A page of another site ({origin[:200]}) asked for this. If it is yours, name its host in ALLOWED_HOSTS."
                raise Forbidden(message, code="cross_origin")
        await self.app(scope, receive, send)

    async def _check_host(self, scope: Scope, headers: Headers) -> None:
        for value in headers.getlist("host"):
            host = host_of(value)
            if not self._known.knows(host) and not await self._peers.is_a_sidecar(scope):
                raise Misdirected(
                    f"This server does not know itself under the name {host[:200]!r}, so it does not answer a browser under it. "
                    "If the name is right, the server's owner adds it to ALLOWED_HOSTS.",
                    code="unknown_host",
                )
