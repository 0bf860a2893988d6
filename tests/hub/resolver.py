"""`locate()` and `download()` in a process of its own, as the engine calls it: huggingface_hub reads its settings once per process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import json, sys
from embed_service.errors import ModelError
from embed_service.models.hub import download, locate
from embed_service.settings import load_settings

def say(**fields):
    print(json.dumps(fields), flush=True)

settings = load_settings()
try:
    located = locate(settings.embed_model, settings.embed_revision, settings)
    found = download(located, lambda done, total: say(progress=[done, total]))
    say(path=found.path, revision=found.revision)
except ModelError as error:
    say(code=error.code, message=error.message, retryable=error.retryable)
say(imported=[name for name in ("torch", "transformers") if name in sys.modules])
"""


@dataclass
class Outcome:
    """Either `path` and `revision`, or the fields of the ModelError. `output` is all that was printed, log included."""

    path: Path = Path()
    revision: str = ""
    code: str = ""
    message: str = ""
    retryable: bool = False
    progress: list[tuple[int, int]] = field(default_factory=list)
    imported: list[str] = field(default_factory=list)
    output: str = ""


class Resolver:
    """A running resolution of EMBED_MODEL in the environment given (nothing else of ours or of the hub's is inherited)."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        keep = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM], cwd=ROOT, env={**keep, **environment}, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def wait_for_bytes(self, count: int) -> None:
        """Until `count` bytes are said to be on the disk."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if json.loads(line).get("progress", [0])[0] >= count:
                return
        raise AssertionError(f"ended before {count} bytes: {self.process.communicate()}")

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def finish(self, seconds: float = 60) -> Outcome:
        stdout, stderr = self.process.communicate(timeout=seconds)
        assert self.process.returncode == 0, stdout + stderr
        lines: list[dict[str, Any]] = [json.loads(line) for line in stdout.splitlines()]
        outcome = Outcome(progress=[tuple(line["progress"]) for line in lines if "progress" in line], output=stdout + stderr)
        for line in lines:
            for name in set(line) - {"progress"}:
                setattr(outcome, name, Path(line[name]) if name == "path" else line[name])
        return outcome


def resolve(environment: Mapping[str, str]) -> Outcome:
    return Resolver(environment).finish()
