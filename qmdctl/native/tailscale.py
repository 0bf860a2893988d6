"""What this machine's own tailscaled serves for the seed's two ports: Services (`svc:qmd-embed`), and ports of the node itself.

The JSON is an ipn.ServeConfig, as `tailscale serve status --json` prints it (tailscale@v1.102.3, ipn/serve.go).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from qmdctl.errors import MissingError, QmdError
from qmdctl.native.units import user_name
from qmdctl.process import Completed, run

Run = Callable[..., Completed]
SERVICES = ("svc:qmd-embed", "svc:qmd-vllm")
HERE = ("127.0.0.1", "localhost", "::1", "")
SECONDS = 10


@dataclass(frozen=True)
class Entry:
    """One thing served: `service` is empty for the node's own. `kind`: https, http, tcp or tls-terminated-tcp."""

    service: str
    kind: str
    port: int
    path: str
    target: str
    funnel: bool = False

    def command(self) -> list[str]:
        """What makes it."""
        service = [f"--service={self.service}"] if self.service else []
        return ["tailscale", "serve", *service, "--bg", f"--{self.kind}={self.port}", *self._path(), self.target]

    def off(self) -> list[str]:
        """What ends it."""
        return ["tailscale", "serve", f"--{self.kind}={self.port}", *self._path(), "off"]

    def _path(self) -> list[str]:
        return [f"--set-path={self.path}"] if self.path not in ("", "/") else []

    def sentence(self) -> str:
        where = self.service or "this node"
        return f"{where}, {self.kind} {self.port}{self.path if self.path != '/' else ''} → {self.target}" + (
            ", open to the internet (Funnel)" if self.funnel else ""
        )

    def payload(self) -> dict[str, object]:
        return {key: getattr(self, key) for key in ("service", "kind", "port", "path", "target", "funnel")}


@dataclass(frozen=True)
class Serving:
    """`services`: the Services of our names, each with its entries; `node`: entries of the node itself that lead to one of the ports.

    `advertised`: the Services that this machine offers to the tailnet now. `config`: the whole JSON, for the journal.
    """

    config: dict[str, Any] = field(default_factory=dict)
    services: dict[str, list[Entry]] = field(default_factory=dict)
    node: list[Entry] = field(default_factory=list)
    advertised: frozenset[str] = frozenset()
    operator: str = ""  # the user who needs no root for it
    tags: tuple[str, ...] = ()
    host: str = ""
    suffix: str = ""  # of the tailnet's names
    problem: str = ""

    @property
    def needs_root(self) -> bool:
        """Whether changing it needs root."""
        return os.geteuid() != 0 and self.operator != user_name()

    def payload(self) -> dict[str, object]:
        return {
            "services": {
                name: {"advertised": name in self.advertised, "entries": [entry.payload() for entry in entries]}
                for name, entries in self.services.items()
            },
            "node": [entry.payload() for entry in self.node],
        }


def find_serving(ports: Mapping[str, int], runner: Run = run) -> Serving:
    """`ports`: on which the seed's services listen. Without a tailscale, or one that does not answer, nothing is served."""
    try:
        config = _json(runner(["tailscale", "serve", "status", "--json"], check=False, timeout_seconds=SECONDS))
    except MissingError:
        return Serving()
    except QmdError as error:
        return Serving(problem=f"tailscale does not answer: {(error.details or error.message).strip()[:200]}")
    services = {name: list(entries(one, name)) for name, one in (config.get("Services") or {}).items() if name in SERVICES}
    node = [entry for entry in entries(config) if leads_to(entry.target, set(ports.values()))]
    if not services and not node:
        return Serving(config)
    preferences = _quietly(runner, "debug", "prefs")
    status = _quietly(runner, "status", "--json", "--peers=false")
    self_ = status.get("Self") or {}
    name = str(self_.get("DNSName") or "").rstrip(".")
    # Where the preferences cannot be read (older versions), a Service with a config is taken for advertised.
    advertised = preferences["AdvertiseServices"] or [] if "AdvertiseServices" in preferences else [] if preferences else services
    return Serving(
        config,
        services,
        node,
        frozenset(advertised),
        str(preferences.get("OperatorUser") or ""),
        tuple(self_.get("Tags") or ()),
        re.sub(r"[^a-z0-9-]+", "-", (name.partition(".")[0] or str(self_.get("HostName") or "")).lower()).strip("-"),
        name.partition(".")[2],
    )


def entries(config: Mapping[str, Any], service: str = "") -> Iterator[Entry]:
    """What one serve config, a node's or a Service's, serves in the background."""
    funnels = {name for name, on in (config.get("AllowFunnel") or {}).items() if on}
    for port, handler in (config.get("TCP") or {}).items():
        if handler.get("TCPForward"):
            kind = "tls-terminated-tcp" if handler.get("TerminateTLS") else "tcp"
            funnel = any(name.endswith(f":{port}") for name in funnels)
            yield Entry(service, kind, int(port), "/", f"tcp://{handler['TCPForward']}", funnel)
    for name, web in (config.get("Web") or {}).items():
        port = name.rpartition(":")[2]
        kind = "http" if (config.get("TCP") or {}).get(port, {}).get("HTTP") else "https"
        for path, handler in (web.get("Handlers") or {}).items():
            if handler.get("Proxy"):
                yield Entry(service, kind, int(port), path, str(handler["Proxy"]), name in funnels)


def leads_to(target: str, ports: set[int]) -> bool:
    """Whether a proxy target is one of these ports of this machine: http://127.0.0.1:8001, localhost:8001, tcp://127.0.0.1:8001."""
    try:
        url = urlsplit(target if "//" in target else f"//{target}")
        return (url.hostname or "") in HERE and url.port in ports
    except ValueError:
        return False


def _quietly(runner: Run, *arguments: str) -> dict[str, Any]:
    try:
        return _json(runner(["tailscale", *arguments], check=False, timeout_seconds=SECONDS))
    except QmdError:
        return {}


def _json(done: Completed) -> dict[str, Any]:
    """QmdError where it failed or is no JSON object; nothing printed is an empty object."""
    if not done.ok:
        raise QmdError("tailscale failed", details=done.stderr or done.stdout)
    try:
        data = json.loads(done.stdout or "{}")
    except ValueError:
        raise QmdError("tailscale printed no JSON", details=done.stdout[:200]) from None
    return data if isinstance(data, dict) else {}
