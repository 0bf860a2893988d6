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


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """Keys and a capability are demanded; /metrics needs no models, so nobody waits for them."""
    folder = tmp_path_factory.mktemp("locked")
    (folder / "keys").write_text(f"{KEY}\n")
    values = {
        "API_KEYS_FILE": str(folder / "keys"),
        "REQUIRE_CAPABILITY": "example.com/cap/qmd",
        "METRICS_CLIENTS": "127.0.0.2,no-such-name",
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
    answer = get(locked, path, "127.0.0.2")
    assert answer.status_code == 200
    assert "embed_ready" in answer.text


def test_it_gets_nothing_else(locked: ServiceProcess) -> None:
    for path in ("/v1/models", "/version", "/openapi.json", "/metrics/more", "/v1/metrics/../models"):
        assert get(locked, path, "127.0.0.2").status_code == 401, path


def test_another_client_is_refused_whatever_it_says(locked: ServiceProcess) -> None:
    for headers in ({}, {"x-forwarded-for": "127.0.0.2"}, {"host": "127.0.0.2"}, {"tailscale-user-login": "prometheus"}):
        assert get(locked, "/metrics", "127.0.0.1", **headers).status_code == 401


def test_what_came_through_a_funnel_is_refused_to_it_too(locked: ServiceProcess) -> None:
    assert get(locked, "/metrics", "127.0.0.2", **{"tailscale-funnel-request": "?1"}).status_code == 403


@pytest.mark.metrics
@pytest.mark.parametrize(
    ("clients", "key", "health"), [("localhost", "", "up"), ("", KEY, "up"), ("", "", "down"), ("", "sk-wrong", "down")]
)
def test_prometheus_with_and_without_a_key(tmp_path: Path, clients: str, key: str, health: str) -> None:
    need_metrics()
    (tmp_path / "keys").write_text(f"{KEY}\n")
    (tmp_path / "key").write_text(key)
    values = {"API_KEYS_FILE": str(tmp_path / "keys"), "METRICS_CLIENTS": clients}
    with ServiceProcess(values, tmp_path / "service.log") as service:
        job = {
            "job_name": "embed",
            "static_configs": [{"targets": [f"127.0.0.1:{service.port}"]}],
            "scrape_interval": "1s",
            "scrape_timeout": "1s",
        }
        job |= {"authorization": {"credentials_file": str(tmp_path / "key")}} if key else {}
        (tmp_path / "prometheus.yml").write_text(yaml.safe_dump({"scrape_configs": [job]}))
        poll(lambda: service.health()[0], 60, "the service")
        processes, port = Processes(tmp_path), free_port()
        try:
            processes.start(
                "prometheus",
                "prometheus",
                "--config.file=prometheus.yml",
                "--storage.tsdb.path=data",
                f"--web.listen-address=127.0.0.1:{port}",
            )
            processes.answers("prometheus", f"http://127.0.0.1:{port}/-/ready")
            prometheus = Prometheus(f"http://127.0.0.1:{port}")

            def said() -> tuple[str, str]:
                return next(iter(prometheus.targets().values()), ("unknown", ""))

            poll(lambda: said()[0] == health, 60, f"the target to be {health}: {said()}", every=0.2)
            assert health == "up" or "401" in said()[1]
            prometheus.client.close()
        finally:
            processes.close()
