"""What the checks of the tailnet share: which sidecars are to be started, and whether they have a login already."""

from __future__ import annotations

from qmdctl.checks.context import Context, Unavailable
from qmdctl.tailnet import SIDECARS
from qmdctl.tailnet.sidecar import read_sidecar


def started(context: Context) -> list[str]:
    """Unavailable where there is none."""
    found = [name for name in SIDECARS if name in context.services]
    if not found:
        raise Unavailable("no sidecar is to be started (COMPOSE_PROFILES without tailnet)")
    return found


def locked(context: Context) -> bool:
    """Whether callers need a key or a capability."""
    return bool(context.settings["API_KEYS_FILE"] or context.settings["REQUIRE_CAPABILITY"])


def with_login(context: Context, sidecars: list[str]) -> list[str]:
    """Those that are on the tailnet now. A volume alone is no proof: it is there after a login that failed as well."""
    if context.engine_error:
        return []
    there = {name: context.containers[name] for name in sidecars if name in context.containers}
    return [name for name, one in there.items() if one.running and read_sidecar(context.engine, one).running]
