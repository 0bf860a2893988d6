"""A sidecar's LocalAPI: HTTP on tailscaled's Unix socket. Who is not root may read and change nothing (ipn/ipnserver, PermitRead)."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any

HOST = "local-tailscaled.sock"  # LocalAPI answers no other (apitype.LocalAPIHost), against DNS rebinding
TIMEOUT_SECONDS = 3.0


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__(HOST, timeout=TIMEOUT_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class LocalApi:
    """`socket_path`: tailscaled's socket. Every method raises OSError where nothing answers, or answers with an error."""

    def __init__(self, socket_path: Path) -> None:
        self._path = socket_path

    def status(self) -> dict[str, Any]:
        """ipnstate.Status without its peers."""
        return self._json("status?peers=false")

    def serve_config(self) -> dict[str, Any]:
        """The ipn.ServeConfig in force; {} where there is none."""
        return self._json("serve-config")

    def metrics(self) -> bytes:
        """tailscaled's own metrics in Prometheus' text form: what containerboot serves with TS_ENABLE_METRICS."""
        return self._get("usermetrics")

    def _json(self, what: str) -> dict[str, Any]:
        body = self._get(what)
        try:
            data = json.loads(body)
        except ValueError:
            raise OSError(f"LocalAPI's {what} is no JSON: {body[:100]!r}") from None
        return data if isinstance(data, dict) else {}

    def _get(self, what: str) -> bytes:
        connection = _Connection(self._path)
        try:
            connection.request("GET", f"/localapi/v0/{what}")
            answer = connection.getresponse()
            body = answer.read()
        except http.client.HTTPException as error:
            raise OSError(f"LocalAPI's {what}: {error!r}") from None
        finally:
            connection.close()
        if answer.status != 200:
            raise OSError(f"LocalAPI's {what}: {answer.status} {body[:100]!r}")
        return body
