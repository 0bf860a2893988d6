"""What a sidecar is doing, from what it knows of itself: a start is over when the name answers with a certificate."""

from __future__ import annotations

import re
from pathlib import Path

from qmdctl.errors import ConfigurationError
from qmdctl.startup.phases import Phase
from qmdctl.tailnet import HOSTNAME_KEYS, serve_config
from qmdctl.tailnet.sidecar import Sidecar

HTTPS_OFF = (
    "HTTPS is off on the tailnet: it gives no certificates, so Tailscale serves nothing here; fix: turn on MagicDNS and HTTPS Certificates"
    " in {console}; it then goes on by itself, qmdctl status shows it"
)
# Without --reset, which would take back the login server, the name and the tags.
STOPPED = "Tailscale is switched off in it; fix: docker exec {container} tailscale up"


def sidecar_phase(sidecar: Sidecar, folder: Path, container_name: str = "") -> Phase:
    """`folder`: the project's, whose serve config is to be in force. The detail of a login is its link."""
    if sidecar.state == "NeedsLogin":
        if sidecar.auth_url:
            return Phase("login", sidecar.auth_url)
        # containerboot ends then, and begins anew with the key, or asks for a login.
        return Phase("connecting", "its login has expired" if sidecar.expired else sidecar.login_error[:300])
    if sidecar.state == "NeedsMachineAuth":
        return Phase("approval", sidecar.console("machines"))
    if sidecar.state == "Stopped":
        return Phase("error", STOPPED.format(container=container_name))
    if not sidecar.running:
        return Phase("connecting", sidecar.login_error[:300])
    if not sidecar.cert_domains:
        return Phase("error", HTTPS_OFF.format(console=sidecar.console("dns")))
    try:
        wanted = serve_config.read(serve_config.on_disk(folder, sidecar.serve_path))
    except ConfigurationError as error:
        return Phase("error", f"{error.message}; fix: {error.fix}")
    if not serve_config.same(sidecar.serve, serve_config.expected(wanted, sidecar.cert_domain)):
        return Phase("applying")
    if sidecar.certificate is None or sidecar.certificate.days_left <= 0:
        return Phase("certificate", next((text for text in sidecar.health if "certificate" in text.lower()), ""))
    return Phase("ready")


def renamed_text(sidecar: Sidecar) -> tuple[str, str]:
    """What it means that the name is another than the one asked for, and what mends it."""
    machines, label = sidecar.console("machines"), sidecar.name.split(".")[0]
    if re.fullmatch(rf"{re.escape(sidecar.wanted)}-\d+", label, re.IGNORECASE):
        return (
            f"the tailnet has another machine called {sidecar.wanted}, so this one is {sidecar.name}",
            f"remove the old {sidecar.wanted} in {machines} and rename this one there; keep the volume: a lost login makes a new machine",
        )
    return (
        f"the tailnet calls it {sidecar.name}, not {sidecar.wanted}",
        f"set {HOSTNAME_KEYS[sidecar.service]}={label} in .env, or rename it in {machines}",
    )
