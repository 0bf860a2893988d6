"""A real server of text: SmolLM2 behind `transformers serve`, which refuses fields that it does not know with 422."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType

import httpx

from tests.support.service import free_port, poll

# One thread: beside the service's own threads more of them wait for each other, and a token then takes seconds.
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


class GenerationServer:
    """`transformers serve FOLDER --device cpu` on loopback. A context manager; ready after `wait_ready()` (about 8 s, 0.8 GB)."""

    def __init__(self, folder: Path, log: Path, port: int | None = None) -> None:
        self.folder = folder
        self.log = log
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> GenerationServer:
        command = [str(Path(sys.executable).with_name("transformers")), "serve", str(self.folder)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--device", "cpu", "--host", "127.0.0.1", "--port", str(self.port)],
                env={**os.environ, **ENVIRONMENT, "HF_HUB_CACHE": str(self.log.parent / "no-hub-cache")},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        return self

    def wait_ready(self, seconds: float = 120) -> GenerationServer:
        def healthy() -> bool:
            assert self.process is not None
            if self.process.poll() is not None:
                raise RuntimeError(f"transformers serve ended with {self.process.returncode}:\n{self.log.read_text()[-4000:]}")
            try:
                return httpx.get(f"{self.url}/health", timeout=5).status_code == 200
            except httpx.TransportError:
                return False

        poll(healthy, seconds, "transformers serve")
        return self

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def __enter__(self) -> GenerationServer:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()
