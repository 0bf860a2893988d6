"""The traps of WSL2."""

from __future__ import annotations

import re
from collections.abc import Iterator

from qmdctl.checks.context import Context
from qmdctl.checks.finding import Finding


def check(context: Context) -> Iterator[Finding]:
    if not context.hardware.wsl:
        yield Finding("wsl", "ok", "not under WSL")
        return
    found = False
    folder = str(context.settings.project.folder)
    if re.match(r"^/mnt/[a-z]/", folder):
        found = True
        yield Finding(
            "wsl", "warning", f"{folder} is on a Windows drive", "files there are many times slower", "clone it below your home in WSL"
        )
    if context.gpu_mode and not context.settings["EMBED_MEMORY_GB"]:
        found = True
        why = "under WSL2 a card that is too full spills into system memory without an error, and everything becomes slow"
        yield Finding("wsl", "warning", "EMBED_MEMORY_GB is not set", why, "qmdctl init proposes a value, or set it in .env")
    if context.gpu_mode and context.hardware.gpu_error:
        why = "under WSL2 the driver is the one of Windows; one installed inside WSL hides it"
        found = True
        yield Finding(
            "wsl", "warning", "nvidia-smi does not answer", why, "remove NVIDIA's driver packages inside WSL, then wsl --shutdown"
        )
    if not found:
        yield Finding("wsl", "ok", "WSL2, none of its traps")
