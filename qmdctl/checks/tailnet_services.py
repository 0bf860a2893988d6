"""What the checks of the tailnet share: which sidecars are to be started, and whether they have a login already."""

from __future__ import annotations

from qmdctl.checks.context import Context, Unavailable
from qmdctl.tailnet import SIDECARS


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
    """Those whose volume is there, so that they have been logged in before, or at least tried to."""
    if context.engine_error:
        return []
    return [name for name in sidecars if context.engine.has_volume(f"{context.settings.name}_{name}")]
