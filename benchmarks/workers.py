"""The contestants without HTTP, each in a process of its own, so that its memory and threads can be told apart."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.results import FORWARD, LIBRARY
from benchmarks.servers import Contestant


class Worker(Contestant):
    """A process that answers lines of JSON; the first says that it is ready."""

    def __init__(self, module: str, arguments: list[str], label: str, **environment: str) -> None:
        super().__init__([sys.executable, "-m", f"benchmarks.{module}", *arguments], environment, label)
        self.pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}

    def ask(self, **request: Any) -> dict[str, Any]:
        """One request, one answer. RuntimeError when the process has ended."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        return self._answer()

    def wait_ready(self) -> tuple[float, float]:
        started = time.monotonic()
        self._answer()
        seconds = time.monotonic() - started
        return seconds, seconds

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait(15)
            self.check()
            raise RuntimeError(f"{self.name} ended; its log ends with:\n{self.last_lines()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


class SentenceTransformers(Worker):
    """`SentenceTransformer.encode` and `CrossEncoder.predict`; see inprocess.py."""

    name = LIBRARY

    def __init__(self, dtype: str, **models: Path) -> None:
        """`models`: role → folder; none for its call "machine" alone."""
        arguments = [dtype, *(f"{role}={folder}" for role, folder in models.items())]
        super().__init__("inprocess", arguments, "-".join([self.name, *(folder.name for folder in models.values())]))


class Forward(Worker):
    """This project's executor on micro-batches, without HTTP, queues and tokenising; see forward.py."""

    name = FORWARD

    def __init__(self, embed: Path, dtype: str) -> None:
        # As the engine sets it for itself.
        super().__init__("forward", [str(embed), dtype], "forward", GOMP_SPINCOUNT="3000")
