"""What start.py is doing now, in a file that the healthcheck (probe.py) reads, and the lines that it logs."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

FILE = Path(os.environ.get("QMD_PHASE_FILE", "/tmp/qmd-phase.json"))


class StartError(Exception):
    """What is wrong and what mends it, in one sentence each."""

    def __init__(self, cause: str, fix: str) -> None:
        super().__init__(f"{cause}; fix: {fix}")


def write(phase: str, **fields: Any) -> None:
    """Replace the file: `phase` with done_bytes, total_bytes, progressed (seconds since the epoch of the last new byte) or error."""
    new = FILE.with_suffix(".new")
    new.write_text(json.dumps({"phase": phase, **fields}))
    os.replace(new, FILE)


def read() -> dict[str, Any]:
    """What was written last; "starting" where nothing was."""
    try:
        state = json.loads(FILE.read_bytes())
    except (OSError, ValueError):
        state = {}
    return {"phase": "starting", **state} if isinstance(state, dict) else {"phase": "starting"}


def stalled_seconds(state: dict[str, Any]) -> int:
    """Whole seconds since the last new byte of a download."""
    return max(0, int(time.time() - state.get("progressed", time.time())))


def say(text: str) -> None:
    sys.stderr.write(f"qmd-vllm: {text}\n")
    sys.stderr.flush()
