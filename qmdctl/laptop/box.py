"""On the GPU box itself: the names that the stack's own sidecars have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qmdctl.engine import Engine
from qmdctl.errors import QmdError
from qmdctl.laptop.names import HOSTNAMES
from qmdctl.tailnet import SIDECARS
from qmdctl.tailnet.sidecar import read_sidecar

if TYPE_CHECKING:
    from qmdctl.settings import Settings

PROFILE = "tailnet"


def names_of_box(settings: Settings) -> dict[str, str]:
    """{service: full DNS name} of the sidecars that run and are logged in; empty where the stack has none."""
    if PROFILE not in settings.profiles:
        return {}
    names = {}
    try:
        engine = Engine.connect()
        containers = engine.containers(settings.name)
        for sidecar, service in SIDECARS.items():
            container = containers.get(sidecar)
            node = read_sidecar(engine, container) if container is not None and container.running else None
            if node is not None and node.running and node.name:
                shared = bool(settings["TAILNET_SERVICE"]) and node.suffix
                names[service] = f"{HOSTNAMES[service]}.{node.suffix}" if shared else node.name
    except QmdError:  # no engine, or one that went away: the names are asked for elsewhere
        return {}
    return names
