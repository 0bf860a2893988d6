"""Who is let in: API keys (401) and the Tailscale capability (403), on every path but /health, /livez and the pages for people.

METRICS_CLIENTS have /metrics without either.

A request that Tailscale Funnel let in from the internet is refused on every path, those three included: /health and the page tell what is
served and in which version, and a Funnel that somebody opened by mistake should lead to nothing that answers. Who sends that header
without a Funnel harms nobody but himself, so it is believed from everyone, and whatever the settings.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import time
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from types import NoneType
from typing import Any

import orjson
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from embed_service.errors import Forbidden, Unauthorized
from embed_service.routes.paths import ASSET_PATHS
from embed_service.routes.peers import TrustedPeers
from embed_service.settings import Settings
from embed_service.telemetry.logs import get_logger

__all__ = ["OPEN_PATHS", "ApiKeys", "AuthMiddleware"]

OPEN_PATHS = frozenset({"/health", "/livez", "/", "/docs"}) | ASSET_PATHS  # the pages' own files hold nothing of this server
UNREADABLE = (-1,)
SETTLED_SECONDS = 2.0
log = get_logger()


class ApiKeys:
    """The keys in a file, one per line, plain or `sha256:<hex>`; `#` begins a comment line. Read again when the file changes.

    A file that is missing or has no key lets nobody in. One that changed within SETTLED_SECONDS is read again each time: it may change
    once more within the same tick of the clock that its times are taken from, at the same length (`qmdctl keys` writes so).
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._stamp: tuple[int, ...] | None = None
        self._read_at = 0.0  # by the same clock as the file's times
        self._digests: list[bytes] = []

    def accepts(self, key: str) -> bool:
        """Whether `key` is one of them. Compares digests with all of them in constant time."""
        self._refresh()
        presented = hashlib.sha256(key.encode("latin-1", "replace")).digest()
        matches = [hmac.compare_digest(presented, digest) for digest in self._digests]
        return any(matches)

    def _refresh(self) -> None:
        try:
            status = os.stat(self._path)
            # A tool that deploys secrets may give each file the same time; the change time and the inode are not its to choose.
            stamp = (status.st_dev, status.st_ino, status.st_ctime_ns, status.st_mtime_ns, status.st_size)
            if stamp == self._stamp and self._read_at - status.st_ctime >= SETTLED_SECONDS:
                return
            read_at = time.time()
            with open(self._path, encoding="utf-8-sig") as file:  # Windows editors begin a file with a byte order mark
                lines = [line.strip() for line in file]
        except (OSError, UnicodeDecodeError) as error:
            if self._stamp != UNREADABLE:
                log.error("API_KEYS_FILE cannot be read: no key is accepted", path=self._path, error=str(error))
            self._stamp, self._digests = UNREADABLE, []
            return
        keys = [line for line in lines if line and not line.startswith("#")]
        digests = [digest for line in keys if (digest := _digest(line))]
        if stamp != self._stamp or digests != self._digests:
            log.info("API keys read", count=len(digests))
            if len(digests) < len(keys):
                log.error("lines of API_KEYS_FILE are not sha256:<64 hexadecimal digits>; they are ignored", count=len(keys) - len(digests))
        self._stamp, self._read_at, self._digests = stamp, read_at, digests


def _digest(line: str) -> bytes | None:
    if not line.startswith("sha256:"):
        return hashlib.sha256(line.encode()).digest()
    try:
        digest = bytes.fromhex(line.removeprefix("sha256:").strip())
    except ValueError:
        return None
    return digest if len(digest) == 32 else None


class AuthMiddleware:
    """Raises Unauthorized and Forbidden; the layer outside it answers them."""

    def __init__(self, app: ASGIApp, settings: Settings, peers: TrustedPeers) -> None:
        self.app = app
        self.keys = ApiKeys(settings.api_keys_file) if settings.api_keys_file else None
        self.capability = settings.require_capability
        self.peers = peers
        # A capability comes from a sidecar alone, and a monitor with a key of its own is one more secret: the stack's is known by its name.
        self.metrics_peers = TrustedPeers(settings.metrics_clients) if settings.metrics_clients else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            if "tailscale-funnel-request" in headers:
                raise Forbidden("This server does not answer the internet: the request came through Tailscale Funnel.", code="funnel")
            if scope["path"] not in OPEN_PATHS and not await self._reads_metrics(scope):
                if self.keys:
                    self._check_key(self.keys, headers.get("authorization", ""))
                if self.capability:
                    await self._check_capability(self.capability, scope, headers)
        await self.app(scope, receive, send)

    async def _reads_metrics(self, scope: Scope) -> bool:
        """Whether METRICS_CLIENTS lets this peer have /metrics."""
        return scope["path"] == "/metrics" and self.metrics_peers is not None and await self.metrics_peers.trusts(scope)

    @staticmethod
    def _check_key(keys: ApiKeys, authorization: str) -> None:
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise Unauthorized("This server wants an API key: send the header 'Authorization: Bearer <key>'.", code="missing_api_key")
        if not keys.accepts(key.strip()):
            raise Unauthorized("The API key is not one of this server's keys. Ask its owner for one.", code="invalid_api_key")

    async def _check_capability(self, capability: str, scope: Scope, headers: Headers) -> None:
        # `serve` takes out what the client sent and sets the header once; where there are several, somebody else wrote one of them.
        values = headers.getlist("tailscale-app-capabilities")
        if len(values) == 1 and _grants(values[0], capability) and await self.peers.trusts(scope):
            return
        message = f"This server wants the Tailscale capability {capability}. Grant it to your device in the tailnet's policy."
        raise Forbidden(message, code="missing_capability")


def _grants(header: str, capability: str) -> bool:
    """Whether Tailscale-App-Capabilities, {name: [value of each grant]}, has the capability.

    Its presence counts, as in Tailscale's own PeerCapMap.HasCapability: a grant without values gives an empty list or null.
    `serve` writes RFC 2047 encoded words where a value is not all ASCII.
    """
    try:
        granted: Any = orjson.loads(str(make_header(decode_header(header))) if header.startswith("=?") else header)
    except (HeaderParseError, LookupError, ValueError):
        return False
    return isinstance(granted, dict) and isinstance(granted.get(capability, False), list | NoneType)
