"""The contestants as child processes: this service, infinity, and sentence-transformers in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import psutil  # type: ignore[import-untyped]

from benchmarks.models import CACHE, ROOT
from demo.processes import free_port

PEERS = ROOT / ".venv-peers" / "bin"
START_SECONDS = 180
REQUEST_SECONDS = 300
OFFLINE = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0", "TOKENIZERS_PARALLELISM": "true"}


class Contestant:
    """A child process. A context manager: started on entry, ended with its children on exit."""

    name = ""

    def __init__(self, command: list[str], environment: Mapping[str, str], label: str) -> None:
        CACHE.mkdir(parents=True, exist_ok=True)
        self.log = CACHE / f"{label}.log"
        self._command = command
        keep = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "TMPDIR", "LANG", "LD_LIBRARY_PATH", "LD_PRELOAD")}
        self._environment = {**keep, **OFFLINE, **environment}
        self._process: subprocess.Popen[bytes] | None = None
        self.pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL}

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def __enter__(self) -> Contestant:
        with self.log.open("wb") as log:
            pipes = {"stdout": log, **self.pipes}
            self._process = subprocess.Popen(self._command, cwd=ROOT, env=self._environment, stderr=log, start_new_session=True, **pipes)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()

    def check(self) -> None:
        if self.process.poll() is not None:
            raise RuntimeError(f"{self.name} ended with {self.process.returncode}; {self.log} ends with:\n{self.log.read_text()[-2000:]}")

    def memory_mb(self) -> tuple[float, str]:
        """Of the process and its children: the proportional set size on Linux (shared pages counted once), else the resident set size."""
        parent = psutil.Process(self.process.pid)
        family = [parent, *parent.children(recursive=True)]
        try:
            return sum(p.memory_full_info().pss for p in family) / 1e6, "PSS"
        except (AttributeError, psutil.AccessDenied):
            return sum(p.memory_info().rss for p in family) / 1e6, "RSS"


class Server(Contestant):
    """A contestant that speaks HTTP."""

    embed_path = "/v1/embeddings"
    rerank_path = "/v1/rerank"

    def __init__(self, command: list[str], environment: Mapping[str, str], label: str, port: int) -> None:
        super().__init__(command, environment, label)
        self.url = f"http://127.0.0.1:{port}"

    def wait_ready(self) -> tuple[float, float]:
        """Seconds, from now, until its first answer over HTTP and until its health is green. Call it right after entering."""
        started = time.monotonic()
        answering = 0.0
        with httpx.Client(base_url=self.url, timeout=10) as client:
            while time.monotonic() - started < START_SECONDS:
                self.check()
                try:
                    answer = client.get("/health")
                except httpx.TransportError:
                    time.sleep(0.01)
                    continue
                answering = answering or time.monotonic() - started
                if answer.status_code == 200:
                    return answering, time.monotonic() - started
                time.sleep(0.02)
        raise RuntimeError(f"{self.name} was not ready within {START_SECONDS} s; its log is {self.log}")


class Ours(Server):
    name = "this service"

    def __init__(self, embed: Path, rerank: Path, dtype: str) -> None:
        port = free_port()
        environment = {
            "EMBED_MODEL": str(embed),
            "RERANK_MODEL": str(rerank),
            "DEVICE": "cpu",
            "DTYPE": dtype,
            "PROMPT_POLICY": "raw",
            "HOST": "127.0.0.1",
            "PORT": str(port),
            "LOG_LEVEL": "warning",
            "REQUEST_DEADLINE_SECONDS": str(REQUEST_SECONDS),  # infinity has none
        }
        super().__init__([sys.executable, "-m", "embed_service", "serve"], environment, f"ours-{dtype}", port)


class Infinity(Server):
    name = "infinity"
    embed_path = "/embeddings"
    rerank_path = "/rerank"

    def __init__(self, embed: Path, rerank: Path, dtype: str) -> None:
        port = free_port()
        models: list[str] = []  # without its warm-up, which measures itself for longer than it takes to load
        for role, folder in (("embed", embed), ("rerank", rerank)):
            models += ["--model-id", str(folder), "--served-model-name", role, "--engine", "torch", "--device", "cpu", "--dtype", dtype]
            models += ["--no-bettertransformer", "--no-trust-remote-code", "--no-model-warmup"]
        command = [str(PEERS / "infinity_emb"), "v2", *models, "--host", "127.0.0.1", "--port", str(port), "--log-level", "error"]
        super().__init__(command, {}, f"infinity-{dtype}", port)

    @staticmethod
    def installed() -> bool:
        return (PEERS / "infinity_emb").exists()


class SentenceTransformers(Contestant):
    """`encode` and CrossEncoder in a process of their own, so that their memory can be told apart (see inprocess.py)."""

    name = "sentence-transformers"

    def __init__(self, embed: Path, rerank: Path, dtype: str) -> None:
        command = [sys.executable, "-m", "benchmarks.inprocess", str(embed), str(rerank), dtype]
        super().__init__(command, {}, f"sentence-transformers-{dtype}")
        self.pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}

    def ask(self, **request: Any) -> dict[str, Any]:
        """One request, one answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        return self._answer()

    def wait_ready(self) -> float:
        """Seconds, from now, until both models are loaded."""
        started = time.monotonic()
        self._answer()
        return time.monotonic() - started

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait(15)
            self.check()
        answer: dict[str, Any] = json.loads(line)
        return answer
