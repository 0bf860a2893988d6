"""A cluster with two nodes for one engine each, and the service on it. Every engine ends at the word "zebra" (FAKE: by its token id)."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
from tokenizers import Tokenizer

from tests.service.conftest import FAULTS
from tests.support.ray_cluster import Cluster
from tests.support.require import require
from tests.support.service import ROOT, ServiceProcess, minilm_path, poll

QUICK = {
    "ENGINES": "ray",
    "RAY_ENGINES": "2",
    "RAY_GPUS_PER_ENGINE": "0",
    "CPU_THREADS": "1",
    "HEALTH_CANARY_SECONDS": "3",
    "ENGINE_HANG_SECONDS": "5",
    "LOAD_WAIT_SECONDS": "100",
}


@dataclass
class Running:
    cluster: Cluster
    head: Popen[bytes]
    workers: list[Popen[bytes]]
    service: ServiceProcess

    def engines(self) -> list[dict[str, Any]]:
        """The engines' lines of /health."""
        return self.service.health()[1]["engines"]  # type: ignore[no-any-return]

    def wait_ready(self, engines: int = 2, seconds: float = 240) -> list[dict[str, Any]]:
        """Until so many take work."""

        def ready() -> list[dict[str, Any]] | None:
            lines = self.engines()
            return lines if sum(line["phase"] == "ready" for line in lines) == engines else None

        try:
            return poll(ready, seconds, f"{engines} engines")  # type: ignore[no-any-return]
        except TimeoutError as error:
            raise TimeoutError(f"{error}: {self.engines()}\n{self.service.log.read_text()[-3000:]}") from None


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    require("ray", importlib.util.find_spec("ray") is not None, "Ray is not installed: make test installs it")
    zebra = Tokenizer.from_file(f"{minilm_path()}/tokenizer.json").token_to_id("zebra")
    assert zebra is not None
    python_path = f"{FAULTS}:{ROOT}"
    folder: Path = tmp_path_factory.mktemp("ray")
    cluster = Cluster(folder, {"PYTHONPATH": python_path, "FAULT": "poison", "FAULT_TOKEN": str(zebra)})
    environment = {**QUICK, "RAY_ADDRESS": cluster.address, "RAY_AUTH_TOKEN_PATH": str(cluster.token), "PYTHONPATH": str(ROOT)}
    environment["CONTROL_SOCKET"] = str(folder / "control.sock")
    try:
        head = cluster.start_head()
        workers = [cluster.start_worker(), cluster.start_worker()]
        with ServiceProcess(environment, folder / "service.log") as service:
            service.wait_healthy(200)
            running = Running(cluster, head, workers, service)
            running.wait_ready()
            yield running
    finally:
        cluster.close()
