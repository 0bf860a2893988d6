"""API keys (401) and the Tailscale capability (403), on every path but /health, /livez and the page."""

from __future__ import annotations

import hashlib
import hmac
import os
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from typing import Any

import orjson
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from embed_service.errors import Forbidden, Unauthorized
from embed_service.routes.peers import TrustedPeers
from embed_service.settings import Settings
from embed_service.telemetry.logs import get_logger

__all__ = ["OPEN_PATHS", "ApiKeys", "AuthMiddleware"]

OPEN_PATHS = frozenset({"/health", "/livez", "/"})
UNREADABLE = (-1,)
log = get_logger()


class ApiKeys:
    """The keys in a file, one per line, plain or `sha256:<hex>`; `#` begins a comment line. Read again when the file changes.

    A file that is missing or has no key lets nobody in.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._stamp: tuple[int, ...] | None = None
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
            if stamp == self._stamp:
                return
            with open(self._path, encoding="utf-8-sig") as file:  # Windows editors begin a file with a byte order mark
                lines = [line.strip() for line in file]
        except (OSError, UnicodeDecodeError) as error:
            if self._stamp != UNREADABLE:
                log.error("API_KEYS_FILE cannot be read: no key is accepted", path=self._path, error=str(error))
            self._stamp, self._digests = UNREADABLE, []
            return
        self._stamp = stamp
        self._digests = [digest for line in lines if line and not line.startswith("#") and (digest := _digest(line))]
        log.info("API keys read", count=len(self._digests))


def _digest(line: str) -> bytes | None:
    if not line.startswith("sha256:"):
        return hashlib.sha256(line.encode()).digest()
    try:
        digest = bytes.fromhex(line.removeprefix("sha256:").strip())
    except ValueError:
        digest = b""
    if len(digest) != 32:
        log.error("a line of API_KEYS_FILE is not sha256:<64 hexadecimal digits>; it is ignored")
        return None
    return digest


class AuthMiddleware:
    """Raises Unauthorized and Forbidden; the layer outside it answers them."""

    def __init__(self, app: ASGIApp, settings: Settings, peers: TrustedPeers) -> None:
        self.app = app
        self.keys = ApiKeys(settings.api_keys_file) if settings.api_keys_file else None
        self.capability = settings.require_capability
        self.peers = peers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            headers = Headers(scope=scope)
            if self.keys:
                self._check_key(self.keys, headers.get("authorization", ""))
            if self.capability:
                await self._check_capability(self.capability, scope, headers)
        await self.app(scope, receive, send)

    @staticmethod
    def _check_key(keys: ApiKeys, authorization: str) -> None:
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise Unauthorized("This server wants an API key: send the header 'Authorization: Bearer <key>'.", code="missing_api_key")
        if not keys.accepts(key.strip()):
            raise Unauthorized("The API key is not one of this server's keys. Ask its owner for one.", code="invalid_api_key")

    async def _check_capability(self, capability: str, scope: Scope, headers: Headers) -> None:
        if await self.peers.trusts(scope):
            granted = _granted(headers.get("tailscale-app-capabilities", ""))
            if isinstance(granted, dict) and capability in granted:
                return
        message = f"This server wants the Tailscale capability {capability}. Grant it to your device in the tailnet's policy."
        raise Forbidden(message, code="missing_capability")


def _granted(header: str) -> Any:
    """The JSON in Tailscale-App-Capabilities, which `serve` writes as RFC 2047 encoded words where a grant's value is not all ASCII."""
    try:
        return orjson.loads(str(make_header(decode_header(header))) if header.startswith("=?") else header)
    except (HeaderParseError, LookupError, ValueError):
        return None
