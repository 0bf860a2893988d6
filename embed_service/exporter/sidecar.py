"""The metrics of one sidecar: what its LocalAPI says, when its certificates end, and tailscaled's own."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from embed_service.exporter.certificate import not_after
from embed_service.exporter.local_api import LocalApi

SOCKET = "tailscaled.sock"


class SidecarMetrics:
    """`folder` holds the sidecar's socket, and copies of its certificates (never of their keys) that its healthcheck puts there.

    A sidecar that does not answer is no failed scrape: `qmd_sidecar_up` is 0, and what was last known of its certificates stays true.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self._folder = folder
        self._api = LocalApi(folder / SOCKET)
        self._names: frozenset[str] = frozenset()
        self._last_success = 0.0
        self._said = ""

    @property
    def present(self) -> bool:
        """Whether the sidecar has run: its socket is there."""
        return (self._folder / SOCKET).exists()

    def render(self) -> bytes:
        """Prometheus' text form."""
        registry = CollectorRegistry()

        def gauge(name: str, about: str, value: float) -> None:
            Gauge(f"qmd_sidecar_{name}", about, registry=registry).set(value)

        status: dict[str, Any] = {}
        own = b""
        try:
            status, serve, own = self._api.status(), self._api.serve_config(), self._api.metrics()
        except OSError as error:
            self._say(f"{self.name}: {error}")
        else:
            self._say("")
            self._last_success = time.time()
            self._names = served_names(serve) | frozenset((status.get("CertDomains") or ())[:1])
            gauge("proxies", "Paths that the serve config in force leads to a service; 0: the name answers nothing.", proxies(serve))
            gauge("funnel", "1 where the serve config in force lets the internet in.", funnel(serve))
        gauge("up", "1 while tailscaled answers.", float(bool(status)))
        gauge("last_success_timestamp_seconds", "When tailscaled answered last; 0: never since the exporter's start.", self._last_success)
        if status:
            node = status.get("Self") or {}
            gauge("running", "1 while the node is logged in and connected (ipn.State Running).", status.get("BackendState") == "Running")
            gauge("online", "1 while the control server sees the node.", bool(node.get("Online")))
            gauge("health_problems", "What tailscaled itself complains of.", len(status.get("Health") or ()))
            expiry = _seconds(node.get("KeyExpiry"))
            gauge("key_expires", "1 where the node's login ends some day; a tagged node's does not.", expiry is not None)
            if expiry is not None:
                gauge("key_expiry_timestamp_seconds", "When the node's login ends.", expiry)
        certificates = Gauge(
            "qmd_sidecar_certificate_expiry_timestamp_seconds", "When the certificate of this name ends.", ("domain",), registry=registry
        )
        for domain, seconds in self._certificates():
            certificates.labels(domain).set(seconds)
        return generate_latest(registry) + own

    def _certificates(self) -> Iterator[tuple[str, float]]:
        """Of the names that are served: a renamed node has those of its earlier names beside them."""
        for domain in sorted(self._names):
            try:
                yield domain, not_after((self._folder / f"{domain}.crt").read_text("ascii"))
            except (OSError, ValueError):
                continue  # not issued, or just being copied

    def _say(self, what: str) -> None:
        """Into the log, once."""
        if what and what != self._said:
            print(what, file=sys.stderr)  # noqa: T201
        self._said = what


def served_names(serve: Mapping[str, Any]) -> frozenset[str]:
    """The host names in a serve config (ipn.ServeConfig), those of Tailscale Services included."""
    return frozenset(host.rpartition(":")[0] for config in _configs(serve) for host in config.get("Web") or {})


def proxies(serve: Mapping[str, Any]) -> int:
    """How many paths lead to a service."""
    webs = [web for config in _configs(serve) for web in (config.get("Web") or {}).values()]
    return sum(bool(handler.get("Proxy")) for web in webs for handler in (web.get("Handlers") or {}).values())


def funnel(serve: Mapping[str, Any]) -> bool:
    """Whether any part of it lets the internet in."""
    return any(allowed for config in _configs(serve) for allowed in (config.get("AllowFunnel") or {}).values())


def _configs(serve: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The config itself, and those of its Services and of `tailscale serve` commands that run in the foreground."""
    return [serve, *(serve.get("Services") or {}).values(), *(serve.get("Foreground") or {}).values()]


def _seconds(text: object) -> float | None:
    """Of an RFC 3339 time; None where there is none. Go writes the year 1 for never."""
    if not isinstance(text, str) or not text or text.startswith("0001"):
        return None
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
