"""Both servers of the demo, started at the same time and stopped together."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from demo import processes, smollm2
from demo.rankers import Row

READY_SECONDS = 180
LOGS = processes.CACHE / "demo"
SERVICE = "embed service, MiniLM"
GENERATION = "transformers serve, SmolLM2"

Report = Callable[[str, str], None]  # (SERVICE or GENERATION, phase in words)


class Servers:
    """A context manager: leaving it stops every process that was started, by its handle, unless `keep()` was called."""

    def __init__(self) -> None:
        self._started: list[processes.Server] = []
        self._helper: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._kept = False

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._kept:
            self.stop()

    @property
    def pids(self) -> list[int]:
        return [server.pid for server in self._started if server.pid is not None]

    def keep(self) -> None:
        """Leave the servers running."""
        self._kept = True

    def stop(self) -> None:
        with self._lock:
            self._closed = True
            if self._helper is not None and self._helper.poll() is None:
                self._helper.terminate()
        processes.stop_all(self._started)

    def start(self, winner: Row, port: int, report: Report) -> processes.Server:
        """The service with the winning reranker, ready, with text generation behind it, ready too. Raises StartError."""
        generation_port = processes.free_port()
        folder = smollm2.CACHE / smollm2.NAME
        with ThreadPoolExecutor(2) as pool:
            try:
                generating = pool.submit(self._generation, generation_port, report)
                if winner.rerank_model == "smollm2":
                    generating.result()  # its folder must be there first
                rerank_model = self.rerank_model(winner, folder)
                service = processes.service(port, rerank_model, LOGS / "service.log", f"http://127.0.0.1:{generation_port}", str(folder))
                # In a thread, because a signal interrupts the main one anywhere: also between a process's start and its being noted.
                pool.submit(self._run, service).result()
                body = service.wait_ready(READY_SECONDS, lambda phase: report(SERVICE, phase))
                report(SERVICE, f"ready on {body['device']} in {(body.get('engine') or {}).get('dtype')}")
                generating.result()
            except BaseException:  # Ctrl-C as well: the pool waits for its thread, which ends when its server does
                self.stop()
                raise
        return service

    @staticmethod
    def rerank_model(winner: Row, smollm2_folder: Path) -> str:
        """RERANK_MODEL for the winner of the comparison."""
        return str(smollm2_folder) if winner.rerank_model == "smollm2" else processes.minilm()

    def _run(self, server: processes.Server) -> None:
        with self._lock:
            if self._closed:
                raise processes.StartError("stopped")
            server.start()
            self._started.append(server)

    def _generation(self, port: int, report: Report) -> None:
        report(GENERATION, "preparing the weights (20 s, once)")
        folder = self._prepare_smollm2()
        server = processes.generation(port, folder, LOGS / "generation.log")
        self._run(server)
        server.wait_ready(READY_SECONDS, lambda phase: report(GENERATION, phase))
        report(GENERATION, "ready")

    def _prepare_smollm2(self) -> Path:
        """The model's folder, made in a process of its own: torch stays out of this one."""
        with self._lock:
            if self._closed:
                raise processes.StartError("stopped")
            command = [sys.executable, "-m", "demo.smollm2"]
            self._helper = subprocess.Popen(command, cwd=processes.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        out, error = self._helper.communicate()
        if self._helper.returncode != 0:
            raise processes.StartError(f"SmolLM2 could not be prepared: {error.strip()[-2000:]}")
        return Path(out.strip().splitlines()[-1])
