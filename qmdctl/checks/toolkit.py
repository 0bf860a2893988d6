"""NVIDIA's container toolkit, as the engine knows it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

from qmdctl.checks.context import Context
from qmdctl.checks.finding import Finding

HOOK = "nvidia-container-runtime-hook"


def check(context: Context) -> Iterator[Finding]:
    runtimes = context.info.get("Runtimes") or {}
    cdi = [device.get("ID", "") for device in context.info.get("DiscoveredDevices") or []]
    if "nvidia" in runtimes:
        yield Finding("toolkit", "ok", "Docker has the runtime nvidia")
    elif any(device.startswith("nvidia.com/gpu") for device in cdi):
        yield Finding("toolkit", "ok", "Docker knows the GPU by CDI")
    elif context.desktop:
        why = "Docker Desktop gives containers the GPU without it, where its settings and the driver of Windows allow it"
        yield Finding("toolkit", "warning", "Docker knows no NVIDIA runtime", why, "where no container sees the GPU: update Docker Desktop")
    elif not context.remote and shutil.which(HOOK):
        yield Finding("toolkit", "ok", f"{HOOK} is installed")
    else:
        fix = "install nvidia-container-toolkit, then: sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker"
        yield Finding("toolkit", "failure", "Docker knows no NVIDIA runtime", "it cannot give a container the GPU", fix)
