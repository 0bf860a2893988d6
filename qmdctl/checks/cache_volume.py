"""Whether models and compile caches outlive a container."""

from __future__ import annotations

from collections.abc import Iterator

from qmdctl.checks.context import Context, Unavailable
from qmdctl.checks.finding import Finding

FOLDERS = {"/models": "downloaded models", "/cache": "compile caches"}


def check(context: Context) -> Iterator[Finding]:
    if not context.containers:
        raise Unavailable("no container yet")
    fine = True
    for service, container in context.containers.items():
        mounts = {mount["Destination"] for mount in context.engine.client.api.inspect_container(container.id).get("Mounts", [])}
        for folder, what in FOLDERS.items():
            if folder not in mounts and service in ("embed", "vllm"):
                fine = False
                why = f"{what} are kept inside the container and vanish with it"
                yield Finding(
                    "cache_volume", "warning", f"{service} has no volume at {folder}", why, "mount it as compose.yaml does, then qmdctl up"
                )
    if fine:
        yield Finding("cache_volume", "ok", "models and compile caches lie in volumes")
