"""What a sidecar knows of itself, read with one `docker exec`: its own healthcheck says no more than that it has an address."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from qmdctl.engine import Container, Engine
from qmdctl.tailnet.certificate import Certificate, read_certificate

MARK = "--8<-- qmdctl"
STATE = "/var/lib/tailscale"
# Each program on its own: before the login the serve config and the certificate are not there. None may hang for ever.
SCRIPT = "; ".join(
    f"echo '{MARK} {name}'; {command} 2>/dev/null"
    for name, command in {
        "status": "timeout 3 tailscale status --json --peers=false",
        "serve": "timeout 3 tailscale serve status --json",
        "prefs": "timeout 3 tailscale debug prefs",
        "certificates": f'for file in {STATE}/certs/*.crt; do echo "# $file"; cat "$file"; done',
    }.items()
)
LOGIN_ERROR = "The last login error was:"
NO_HTTPS = "no-https"  # what containerboot writes for ${TS_CERT_DOMAIN} where the tailnet gives no certificates


@dataclass(frozen=True)
class Sidecar:
    """One node as Tailscale describes it. `state` is "" where tailscaled does not answer.

    `state`: NoState, NeedsLogin, NeedsMachineAuth, Stopped, Starting, Running (ipn.State). `name`: the full one, without its last dot.
    `expiry`: when its login ends, None where it does not. `serve`: the serve config in force (ipn.ServeConfig).
    """

    service: str
    state: str = ""
    auth_url: str = ""
    wanted: str = ""  # TS_HOSTNAME
    name: str = ""
    suffix: str = ""
    addresses: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    expiry: datetime | None = None
    expired: bool = False
    online: bool = False
    capabilities: frozenset[str] = frozenset()
    cert_domains: tuple[str, ...] = ()
    health: tuple[str, ...] = ()
    serve: dict[str, Any] = field(default_factory=dict)
    serve_path: str = ""  # TS_SERVE_CONFIG
    advertised: tuple[str, ...] = ()
    control_url: str = ""
    certificate: Certificate | None = None

    @property
    def running(self) -> bool:
        return self.state == "Running"

    @property
    def cert_domain(self) -> str:
        """What containerboot puts in place of ${TS_CERT_DOMAIN}."""
        return self.cert_domains[0] if self.cert_domains else NO_HTTPS

    @property
    def renamed(self) -> bool:
        """Whether the tailnet gave it another name than the one asked for, as it does where that is taken (`qmd-embed-1`)."""
        return bool(self.name and self.wanted) and self.name.split(".")[0].lower() != self.wanted.lower()

    def console(self, page: str) -> str:
        """Where its tailnet's owner sets things: "dns", "machines", "acls", "settings/keys"."""
        own = self.control_url and "tailscale.com" not in self.control_url
        return f"your control server ({self.control_url})" if own else f"the admin console (login.tailscale.com/admin/{page})"

    @property
    def login_error(self) -> str:
        """Why its last login failed, in Tailscale's words; empty where it did not."""
        return next((text.partition(LOGIN_ERROR)[2].strip() for text in self.health if LOGIN_ERROR in text), "")

    @property
    def url(self) -> str:
        return f"https://{self.name}" if self.name else ""


def read_sidecar(engine: Engine, container: Container) -> Sidecar:
    """Ask inside a running container. One that has just ended, or whose tailscaled is not up yet, has state ""."""
    text = engine.execute(container, ["sh", "-c", SCRIPT])
    return parse_sidecar(container, text)


def parse_sidecar(container: Container, text: str) -> Sidecar:
    """What SCRIPT printed."""
    parts = {}
    for part in text.split(f"{MARK} ")[1:]:
        name, _, content = part.partition("\n")
        parts[name.strip()] = content
    status, serve, prefs = (_json(parts.get(name, "")) for name in ("status", "serve", "prefs"))
    own = status.get("Self") or {}
    domains = tuple(status.get("CertDomains") or ())
    expiry = _time(own.get("KeyExpiry"))
    return Sidecar(
        service=container.service,
        state=str(status.get("BackendState") or ""),
        auth_url=str(status.get("AuthURL") or ""),
        wanted=container.environment.get("TS_HOSTNAME", ""),
        name=str(own.get("DNSName") or "").rstrip("."),
        suffix=str((status.get("CurrentTailnet") or {}).get("MagicDNSSuffix") or status.get("MagicDNSSuffix") or ""),
        addresses=tuple(own.get("TailscaleIPs") or ()),
        tags=tuple(own.get("Tags") or ()),
        expiry=expiry,
        expired=bool(own.get("Expired")) or bool(expiry and expiry <= datetime.now(UTC)),  # while logged out Expired is absent
        online=bool(own.get("Online")),
        capabilities=frozenset(own.get("CapMap") or ()),
        cert_domains=domains,
        health=tuple(map(str, status.get("Health") or ())),
        serve=serve,
        serve_path=container.environment.get("TS_SERVE_CONFIG", ""),
        advertised=tuple(prefs.get("AdvertiseServices") or ()),
        control_url=str(prefs.get("ControlURL") or ""),
        certificate=_certificate(parts.get("certificates", ""), domains),
    )


def _certificate(text: str, domains: tuple[str, ...]) -> Certificate | None:
    """That of the node's own name; a renamed node has those of its earlier names beside it."""
    files = dict(part.partition("\n")[::2] for part in text.split("# ")[1:])
    pem = files.get(f"{STATE}/certs/{domains[0]}.crt", "") if domains else ""
    return read_certificate(pem)


def _json(text: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


def _time(text: object) -> datetime | None:
    return datetime.fromisoformat(text.replace("Z", "+00:00")) if isinstance(text, str) and text and not text.startswith("0001") else None
