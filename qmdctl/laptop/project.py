"""A project of the stack, where one happens to be here: the laptop's verbs take its names and models, and never need it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qmdctl.errors import ConfigurationError
from qmdctl.laptop.names import HOSTNAME_KEYS

if TYPE_CHECKING:
    from qmdctl.commands.common import Invocation
    from qmdctl.settings import Settings

UDP_KEYS = {"embed": "EMBED_UDP_PORT", "vllm": "VLLM_UDP_PORT"}


@dataclass(frozen=True)
class Here:
    """`settings` is None where no project is here or its settings cannot be read, which `problem` then says."""

    settings: Settings | None = None
    problem: str = ""
    hostnames: dict[str, str] = field(default_factory=dict)
    udp_ports: dict[str, str] = field(default_factory=dict)


def found_project(call: Invocation) -> Here:
    """The project of this call, which is not remembered. ConfigurationError only where --project or QMD_HOME names none."""
    import os

    from qmdctl.project import find_project

    try:
        project = find_project(call.project_option, call.state())
    except ConfigurationError:
        if call.project_option or os.environ.get("QMD_HOME"):
            raise
        return Here()
    from qmdctl.settings import load_settings

    try:
        settings = load_settings(project, need_env=False)
    except ConfigurationError as error:
        return Here(problem=f"{project.folder}: {error.message}; the defaults are used.")
    # With Tailscale Services the keys name this box's own nodes; clients take the names that boxes share, which are the default ones.
    hostnames = {} if settings["TAILNET_SERVICE"] else _set(settings, HOSTNAME_KEYS)
    return Here(settings, "", hostnames, _set(settings, UDP_KEYS))


def _set(settings: Settings, keys: dict[str, str]) -> dict[str, str]:
    return {service: settings[key] for service, key in keys.items() if settings[key]}
