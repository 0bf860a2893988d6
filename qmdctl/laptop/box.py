"""On the GPU box itself: the names that the stack's own sidecars have."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from qmdctl.errors import QmdError
from qmdctl.laptop.names import HOSTNAMES, SERVICES
from qmdctl.laptop.tailscale import parse
from qmdctl.process import run

if TYPE_CHECKING:
    from qmdctl.settings import Settings

PROFILE = "tailnet"
SECONDS = 10


def names_of_box(settings: Settings) -> dict[str, str]:
    """{service: full DNS name} of the sidecars that run and are logged in; empty where the stack has none."""
    if PROFILE not in settings.profiles:
        return {}
    names = {}
    for service in SERVICES:
        command = ["docker", "exec", f"qmd-ts-{service}", "tailscale", "status", "--json", "--peers=false"]
        try:
            tailnet = parse("tailscale", json.loads(run(command, timeout_seconds=SECONDS).stdout))
        except (QmdError, ValueError, LookupError):
            continue
        if tailnet.running and tailnet.this and tailnet.this.name:
            shared = bool(settings["TAILNET_SERVICE"]) and tailnet.suffix
            names[service] = f"{HOSTNAMES[service]}.{tailnet.suffix}" if shared else tailnet.this.name
    return names
