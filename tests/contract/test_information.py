"""GET /health when warm, /livez, /version, /v1/models, /metrics."""

from __future__ import annotations

import re
from importlib import import_module

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.wire import embed, metric

SEED_FIELDS = {"status", "models", "device", "cuda_available"}
OUR_FIELDS = {"phase", "fingerprint", "prompt_policy", "version", "uptime_seconds", "engine"}
VERSION = import_module("embed_service").__version__


def test_health_has_the_seeds_fields_exactly(client: httpx.Client, minilm: str) -> None:
    answer = client.get("/health")
    assert answer.status_code == 200
    body = answer.json()
    assert list(body)[:4] == ["status", "models", "device", "cuda_available"]
    assert body["status"] == "ok"
    assert body["models"] == {"embed": minilm, "rerank": minilm}
    assert body["device"] == "cpu"
    assert body["cuda_available"] is False or isinstance(body["cuda_available"], bool)


def test_health_has_our_fields(client: httpx.Client) -> None:
    body = client.get("/health").json()
    assert body.keys() >= SEED_FIELDS | OUR_FIELDS
    assert body["prompt_policy"] == "native"
    assert body["version"] == VERSION
    assert body["uptime_seconds"] > 0
    assert isinstance(body["fingerprint"], str)
    assert re.fullmatch(r"[\w.:-]{6,}", body["fingerprint"])
    assert isinstance(body["engine"], dict)
    assert body["engine"]


def test_livez(client: httpx.Client) -> None:
    assert client.get("/livez").status_code == 200


def test_version(client: httpx.Client) -> None:
    assert client.get("/version").json()["version"] == VERSION


@pytest.mark.parametrize("path", ["/v1/models", "/models"])
def test_models_lists_ids_and_aliases(client: httpx.Client, minilm: str, path: str) -> None:
    body = client.get(path).json()
    assert body["object"] == "list"
    assert {m["object"] for m in body["data"]} == {"model"}
    ids = [m["id"] for m in body["data"]]
    assert len(set(ids)) == len(ids)
    assert set(ids) >= {minilm, "default", "embed", "qmd-embed", "rerank", "qmd-rerank"}
    assert all(isinstance(m["created"], int) and isinstance(m["owned_by"], str) for m in body["data"])


def test_metrics_are_prometheus_text(client: httpx.Client) -> None:
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    families = list(text_string_to_metric_families(answer.text))
    assert families
    assert all(f.documentation for f in families)


def test_requests_tokens_and_latency_are_counted(client: httpx.Client) -> None:
    names = {"route": "/v1/embeddings", "status": "200"}
    requests, tokens = metric(client, "embed_requests_total", **names), metric(client, "embed_computed_tokens_total", role="embed")
    latencies = metric(client, "embed_request_seconds_count", route="/v1/embeddings", lane="interactive")
    embed(client, "four words of text")
    assert metric(client, "embed_requests_total", **names) == requests + 1
    assert metric(client, "embed_computed_tokens_total", role="embed") == tokens + 6
    assert metric(client, "embed_request_seconds_count", route="/v1/embeddings", lane="interactive") == latencies + 1


def test_labels_of_requests_are_bounded(client: httpx.Client) -> None:
    for n in range(3):
        client.get(f"/made-up/{n}")
    assert "made-up" not in client.get("/metrics").text
