"""Compose, and whether it knows what the compose files use."""

from __future__ import annotations

import re
from collections.abc import Iterator

from qmdctl.checks.context import Context
from qmdctl.checks.finding import Finding
from qmdctl.errors import QmdError

OLDEST = (2, 24)  # !reset of compose.cpu.yaml (Compose 2.24's release notes)
FIX = "install Docker's compose plugin: docs.docker.com/compose/install/linux"


def check(context: Context) -> Iterator[Finding]:
    try:
        done = context.run(["docker", "compose", "version", "--short"], check=False, timeout_seconds=20)
    except QmdError as error:
        yield Finding("compose_version", "failure", error.message, "the stack is started through it", FIX)
        return
    found = re.match(r"v?(\d+)\.(\d+)", done.stdout.strip())
    if not found:
        said = (done.stderr or done.stdout).strip().splitlines()
        yield Finding("compose_version", "failure", "docker compose does not answer", said[0] if said else "", FIX)
    elif (int(found[1]), int(found[2])) < OLDEST:
        text = f"Compose {done.stdout.strip()} is older than {OLDEST[0]}.{OLDEST[1]}"
        yield Finding("compose_version", "failure", text, "it does not understand compose.cpu.yaml", FIX)
    else:
        yield Finding("compose_version", "ok", f"Compose {done.stdout.strip()}")
