"""The whole of the profile `metrics` but Grafana, on loopback, around a service and sidecars whose faults a test makes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.metrics.fakes import FakeTailscaled, FakeVllm, Inbox
from tests.support.monitoring import (
    Processes,
    Prometheus,
    need_metrics,
    start_alertmanager,
    start_exporter,
    start_node_exporter,
    start_prometheus,
)
from tests.support.service import ROOT, ServiceProcess, free_port

RECORDED = ROOT / "tests/metrics/vllm/0.12.txt"
SIDECARS = ("ts-embed", "ts-vllm")
DAY = 86400


def write_certificate(path: Path, domain: str, days: int) -> None:
    """A self-signed certificate that ends in so many days, in PEM as Tailscale's are."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", "/dev/null"]
    command += ["-subj", f"/CN={domain}", "-addext", f"subjectAltName=DNS:{domain}", "-days", str(days), "-out", str(path)]
    subprocess.run(command, capture_output=True, check=True)


@dataclass
class Watched:
    """What is watched, and who watches. `disk`: a small file system to fill."""

    service: ServiceProcess
    prometheus: Prometheus
    inbox: Inbox
    disk: Path
    processes: Processes
    sidecars: dict[str, FakeTailscaled] = field(default_factory=dict)


@pytest.fixture(scope="package")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    need_metrics()
    folder = tmp_path_factory.mktemp("metrics")
    values = {
        "PYTHONPATH": str(ROOT / "tests/support/faults"),
        **{"FAULT": "oom", "FAULT_SEQUENCES": "12"},  # FAKE: more texts at once do not fit
        **{"LOAD_WAIT_SECONDS": "100", "RESULT_CACHE_MB": "8"},
    }
    with ExitStack() as ending:
        service = ending.enter_context(ServiceProcess(values, folder / "service.log"))
        sidecars = {name: ending.enter_context(FakeTailscaled(name, folder / "sidecars" / name)) for name in SIDECARS}
        for sidecar in sidecars.values():
            write_certificate(sidecar.folder / f"{sidecar.domain}.crt", sidecar.domain, 60)
            sidecar.key_ends(datetime.now(UTC).timestamp() + 90 * DAY)
        vllm = free_port()
        ending.enter_context(FakeVllm(vllm, RECORDED))
        inbox = ending.enter_context(Inbox())
        (folder / "address").write_text(inbox.url)
        processes = Processes(folder)
        ending.callback(processes.close)
        targets = {"EMBED_TARGET": f"127.0.0.1:{service.port}", "VLLM_TARGET": f"127.0.0.1:{vllm}"}
        exporter = start_exporter(processes, folder / "sidecars", COMPOSE_PROFILES="generation,tailnet,metrics", **targets)
        node, disk = start_node_exporter(processes, folder / "root")
        alertmanager = start_alertmanager(processes, "webhook", folder / "address")
        service.wait_healthy()
        prometheus = start_prometheus(processes, exporter, node=node, alertmanager=alertmanager)
        ending.callback(prometheus.client.close)
        yield Watched(service, prometheus, inbox, disk, processes, sidecars)
