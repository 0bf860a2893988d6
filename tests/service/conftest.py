"""A service to break, and the load to break it under."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.service import ROOT, ServiceProcess

FAULTS = str(ROOT / "tests" / "support" / "faults")
TEXTS = [f"note {n}: " + "how the sidecar keeps its name over a restart " * (1 + n % 5) for n in range(12)]
QUICK = {"HEALTH_CANARY_SECONDS": "3", "ENGINE_HANG_SECONDS": "5", "LOAD_WAIT_SECONDS": "100"}


@pytest.fixture
def breakable(tmp_path: Path) -> Iterator[Callable[..., ServiceProcess]]:
    """`breakable(**environment)` starts a service of one's own and waits until it is healthy."""
    started: list[ServiceProcess] = []

    def start(**environment: str) -> ServiceProcess:
        process = ServiceProcess({**QUICK, "PYTHONPATH": FAULTS, **environment}, tmp_path / f"service{len(started)}.log").start()
        started.append(process)
        process.wait_healthy()
        return process

    yield start
    for process in started:
        process.__exit__(None, None, None)


def embed(service: ServiceProcess, texts: list[str], **headers: str) -> Any:
    """The vectors float32 [n, dimensions] of one request. Raises on any other status than 200."""
    with service.client() as client:
        answer = client.post("/v1/embeddings", json={"input": texts}, headers=headers)
    answer.raise_for_status()
    return np.array([d["embedding"] for d in answer.json()["data"]], np.float32)


def rerank(service: ServiceProcess, query: str, documents: list[str]) -> list[tuple[int, float]]:
    with service.client() as client:
        answer = client.post("/v1/rerank", json={"query": query, "documents": documents})
    answer.raise_for_status()
    return [(r["index"], r["relevance_score"]) for r in answer.json()["results"]]


@dataclass
class Load:
    """Five clients that embed and rerank until `stop`; every answer is compared with the one given before the fault."""

    service: ServiceProcess
    answered: int = 0
    wrong: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._vectors = embed(self.service, TEXTS)
        self._scores = rerank(self.service, TEXTS[0], TEXTS)
        self._pool = ThreadPoolExecutor(5)
        self._running = [self._pool.submit(self._client, n) for n in range(5)]

    def _client(self, number: int) -> None:
        while not self._stop.is_set():
            try:
                if number == 0:
                    scores = rerank(self.service, TEXTS[0], TEXTS)
                    same = [i for i, _ in scores] == [i for i, _ in self._scores] and np.allclose(
                        [s for _, s in scores], [s for _, s in self._scores], atol=1e-5
                    )
                else:
                    same = np.allclose(embed(self.service, TEXTS), self._vectors, atol=1e-5)
                problem = "" if same else f"client {number}: another answer than before the fault"
            except Exception as error:
                problem = f"client {number}: {error!r}"
            with self._lock:
                self.answered += 1
                if problem:
                    self.wrong.append(problem)

    def stop(self) -> None:
        self._stop.set()
        for future in self._running:
            future.result()
        self._pool.shutdown()


def metric(service: ServiceProcess, name: str) -> float:
    """The value of one series of /metrics, labels included in `name`."""
    with service.client() as client:
        lines = client.get("/metrics").text.splitlines()
    return float(next(line.rsplit(" ", 1)[1] for line in lines if line.startswith(name + " ")))
