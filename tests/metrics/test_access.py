"""Who reads the embed service's /metrics where it is locked: METRICS_CLIENTS without a key, everybody else with one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from tests.support.monitoring import Processes, Prometheus, need_metrics
from tests.support.service import ServiceProcess, free_port, poll

KEY = "sk-key-of-another-prometheus"
NAMED, OTHER = "127.0.0.1", "127.0.0.2"


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """Keys and a capability are demanded; /metrics needs no models, so nobody waits for them."""
    folder = tmp_path_factory.mktemp("locked")
    (folder / "keys").write_text(f"{KEY}\n")
    values = {
        "API_KEYS_FILE": str(folder / "keys"),
        "REQUIRE_CAPABILITY": "example.com/cap/qmd",
        "METRICS_CLIENTS": "localhost,no-such-name",
    }
    with ServiceProcess(values, folder / "service.log") as process:
        poll(lambda: process.health()[0], 60, "the service")
        yield process


def get(service: ServiceProcess, path: str, source: str, **headers: str) -> httpx.Response:
    transport = httpx.HTTPTransport(local_address=source)
    with httpx.Client(transport=transport, base_url=service.url, timeout=30, headers=headers) as client:
        return client.get(path)


@pytest.mark.parametrize("path", ["/metrics", "/metrics/"])
def test_a_named_client_needs_neither_key_nor_capability(locked: ServiceProcess, path: str) -> None:
    answer = get(locked, path, NAMED)
    assert answer.status_code == 200
    assert "embed_ready" in answer.text


def test_it_gets_nothing_else(locked: ServiceProcess) -> None:
    for path in ("/v1/models", "/version", "/openapi.json", "/metrics/more", "/v1/metrics/../models"):
        assert get(locked, path, NAMED).status_code == 401, path


def test_another_client_is_refused_whatever_it_says(locked: ServiceProcess) -> None:
    for headers in ({}, {"x-forwarded-for": NAMED}, {"host": "localhost"}, {"tailscale-user-login": "prometheus"}):
        assert get(locked, "/metrics", OTHER, **headers).status_code == 401


def test_what_came_through_a_funnel_is_refused_to_it_too(locked: ServiceProcess) -> None:
    assert get(locked, "/metrics", NAMED, **{"tailscale-funnel-request": "?1"}).status_code == 403


@pytest.mark.metrics
def test_prometheus_by_its_name_and_another_with_a_key(locked: ServiceProcess, tmp_path: Path) -> None:
    need_metrics()
    (tmp_path / "keys").write_text(f"{KEY}\n")
    (tmp_path / "right").write_text(KEY)
    (tmp_path / "wrong").write_text("sk-wrong")
    processes, port = Processes(tmp_path), free_port()
    with ServiceProcess({"API_KEYS_FILE": str(tmp_path / "keys")}, tmp_path / "service.log") as nameless:
        jobs = [
            {"job_name": "by name", "static_configs": [{"targets": [f"127.0.0.1:{locked.port}"], "labels": {"instance": "by name"}}]},
            *({"job_name": name, "static_configs": [{"targets": [f"127.0.0.1:{nameless.port}"], "labels": {"instance": name}}]}
              for name in ("no key", "right", "wrong")),
        ]  # fmt: skip
        for job in jobs[2:]:
            job["authorization"] = {"credentials_file": str(tmp_path / str(job["job_name"]))}
        config = {"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": jobs}
        (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
        poll(lambda: nameless.health()[0], 60, "the service")
        try:
            listen = f"127.0.0.1:{port}"
            processes.start(
                "prometheus", "prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data", f"--web.listen-address={listen}"
            )
            processes.answers("prometheus", f"http://{listen}/-/ready")
            prometheus = Prometheus(f"http://{listen}")
            wanted = {"by name": "up", "right": "up", "wrong": "down", "no key": "down"}

            def as_wanted() -> bool:
                return {name: health for name, (health, _) in prometheus.targets().items()} == wanted

            poll(as_wanted, 60, f"{wanted}: {prometheus.targets()}", every=0.2)
            assert all("401" in error for _, error in prometheus.targets().values() if error)
            prometheus.client.close()
        finally:
            processes.close()
