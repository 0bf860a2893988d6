"""The real service as a real process on loopback."""

from __future__ import annotations

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

from demo.processes import ROOT, free_port
from demo.processes import minilm as minilm_path

__all__ = ["ROOT", "ServiceProcess", "free_port", "minilm_path", "poll"]


def poll(condition: Any, seconds: float, what: str, every: float = 0.05) -> Any:
    """Wait until `condition()` is truthy and return it; TimeoutError names what was waited for."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(every)
    raise TimeoutError(f"waited {seconds} s for {what}")


class ServiceProcess:
    """`python -m embed_service serve` with the given environment. A context manager.

    The environment starts from nothing of ours: DEVICE=cpu, DTYPE=float32, HF_HUB_OFFLINE=1, RESULT_CACHE_MB=0 unless given.
    """

    def __init__(self, environment: Mapping[str, str], log: Path, port: int | None = None) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        keep = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "TMPDIR", "LANG", "LD_LIBRARY_PATH", "PYTHONPATH")}
        self.environment = {
            **keep,
            "DEVICE": "cpu",
            "DTYPE": "float32",
            "HF_HUB_OFFLINE": "1",
            "OMP_WAIT_POLICY": "passive",  # threads that spin while they wait starve the other processes of a test run
            "EMBED_MODEL": minilm_path(),
            "RERANK_MODEL": minilm_path(),
            "RESULT_CACHE_MB": "0",  # so that every test's request reaches the engine
            **environment,
            "HOST": "127.0.0.1",
            "PORT": str(self.port),
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> ServiceProcess:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "embed_service", "serve"],
                cwd=ROOT,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
        return self

    def health(self) -> tuple[int, dict[str, Any]]:
        """(status, body) of /health; (0, {}) while nothing answers."""
        try:
            answer = httpx.get(f"{self.url}/health", timeout=10)
        except httpx.TransportError:
            return 0, {}
        return answer.status_code, answer.json()

    def wait_healthy(self, seconds: float = 120) -> dict[str, Any]:
        def healthy() -> dict[str, Any] | None:
            assert self.process is not None
            if self.process.poll() is not None:
                raise RuntimeError(f"the service ended with {self.process.returncode}:\n{self.log.read_text()[-4000:]}")
            status, body = self.health()
            return body if status == 200 else None

        try:
            return poll(healthy, seconds, "a healthy service")  # type: ignore[no-any-return]
        except TimeoutError as error:
            raise TimeoutError(f"{error}; health: {self.health()}; log:\n{self.log.read_text()[-4000:]}") from None

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=120, **options)

    def terminate(self, seconds: float = 30) -> int:
        """SIGTERM and wait. The exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def __enter__(self) -> ServiceProcess:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
