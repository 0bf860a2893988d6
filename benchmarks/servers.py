"""The contestants that speak HTTP, as child processes: this service, vLLM and infinity."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import orjson
import psutil  # type: ignore[import-untyped]

from benchmarks.models import CACHE, ROOT
from benchmarks.results import INFINITY, OURS, VLLM
from demo.processes import free_port

PEERS = ROOT / ".venv-peers" / "bin"
VLLM_PEERS = ROOT / ".venv-peers-vllm" / "bin"
START_SECONDS = 600  # two vLLMs that start beside each other on two busy cores
LOG_LINES = 12  # of a contestant that ended, shown
REQUEST_SECONDS = 300
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "INFINITY_ANONYMOUS_USAGE_STATS": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "TOKENIZERS_PARALLELISM": "true",
}


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
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(15)
        # The process leads a group of its own; a child that outlived it would slow down whoever is measured next.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def check(self) -> None:
        if self.process.poll() is not None:
            raise RuntimeError(f"{self.name} ended with {self.process.returncode}; its log ends with:\n{self.last_lines()}")

    def last_lines(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-LOG_LINES:])

    def wait_ready(self) -> tuple[float, float]:
        """Seconds, from now, until it answers at all and until it is ready. RuntimeError when it does not start.

        Call it right after entering.
        """
        raise NotImplementedError

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

    def embedding_body(self, texts: Sequence[str], urgent: bool = False) -> bytes:
        """JSON of POST `embed_path`. `urgent`: a short query, told apart where the server has a field for it."""
        return orjson.dumps({"model": "embed", "input": list(texts)})

    def rerank_body(self, query: str, documents: Sequence[str]) -> bytes:
        """JSON of POST `rerank_path`."""
        return orjson.dumps({"model": "rerank", "query": query, "documents": list(documents)})

    def wait_ready(self) -> tuple[float, float]:
        """Until its first answer over HTTP, whatever it is, and until its health is green."""
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
        raise RuntimeError(f"{self.name} was not ready within {START_SECONDS} s; its log ends with:\n{self.last_lines()}")


class Ours(Server):
    name = OURS

    def __init__(self, embed: Path, rerank: Path, dtype: str, **more: str) -> None:
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
            "REQUEST_DEADLINE_SECONDS": str(REQUEST_SECONDS),  # the others have none
            "RESULT_CACHE_MB": "0",  # the others compute each time
            **more,
        }
        super().__init__([sys.executable, "-m", "embed_service", "serve"], environment, f"ours-{rerank.name}", port)

    def metrics(self) -> dict[str, float]:
        """Its /metrics: "name" or "name{labels}" → value."""
        text = httpx.get(f"{self.url}/metrics", timeout=10).raise_for_status().text
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))}


class Vllm(Server):
    """vLLM's pooling runner on one model. `flags` go to `vllm serve`."""

    name = VLLM

    def __init__(self, role: str, model: Path, dtype: str, *flags: str, label: str = "") -> None:
        port = free_port()
        command = [str(VLLM_PEERS / "vllm"), "serve", str(model), "--served-model-name", role, "--runner", "pooling", "--dtype", dtype]
        command += ["--host", "127.0.0.1", "--port", str(port), "--disable-uvicorn-access-log", *flags]
        environment = {
            "VLLM_CPU_KVCACHE_SPACE": "2",  # GB
            "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",  # of two cores it would keep one from computing
            "VLLM_CACHE_ROOT": str(CACHE / "vllm"),
        }
        super().__init__(command, environment, f"vllm-{model.name}{label}", port)
        self._priorities = "priority" in flags

    def embedding_body(self, texts: Sequence[str], urgent: bool = False) -> bytes:
        # A text beyond the model's length is an error otherwise; the lower priority goes first.
        priority = {"priority": -1 if urgent else 0} if self._priorities else {}
        return orjson.dumps({"model": "embed", "input": list(texts), "truncate_prompt_tokens": -1, **priority})

    @staticmethod
    def installed() -> bool:
        return (VLLM_PEERS / "vllm").exists()


class Infinity(Server):
    name = INFINITY
    embed_path = "/embeddings"
    rerank_path = "/rerank"

    def __init__(self, dtype: str, **models: Path) -> None:
        """`models`: role → folder."""
        port = free_port()
        parts: list[str] = []  # without its warm-up, which measures itself for longer than it takes to load
        for role, folder in models.items():
            parts += ["--model-id", str(folder), "--served-model-name", role, "--engine", "torch", "--device", "cpu", "--dtype", dtype]
            parts += ["--no-bettertransformer", "--no-trust-remote-code", "--no-model-warmup"]
        command = [str(PEERS / "infinity_emb"), "v2", *parts, "--host", "127.0.0.1", "--port", str(port), "--log-level", "error"]
        super().__init__(command, {}, "infinity", port)

    @staticmethod
    def installed() -> bool:
        return (PEERS / "infinity_emb").exists()
