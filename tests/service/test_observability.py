"""Metrics and logs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import httpx

from tests.service.conftest import TEXTS, embed, metric, rerank
from tests.support.service import ServiceProcess, poll

Start = Callable[..., ServiceProcess]
EXPECTED = (
    "embed_requests_total", "embed_request_seconds_count", "embed_queue_seconds_count", "embed_tokenise_seconds_count",
    "embed_compute_seconds_count", "embed_batch_tokens_count", "embed_batch_sequences_count", "embed_computed_tokens_total",
    "embed_padded_tokens_total", "embed_padding_efficiency_ratio", "embed_inputs_total", "embed_truncated_inputs_total",
    "embed_out_of_memory_splits_total",
    "embed_engine_busy_seconds_total", "embed_engine_idle_seconds_total",
    "embed_failed_rows_total", "embed_engine_restarts_total", "embed_requeued_sequences_total", "embed_dropped_clients_total",
    "embed_queued_sequences", "embed_queued_tokens", "embed_token_budget", "embed_ready", "embed_engine_up", "embed_model_info",
    "embed_cache_hits_total", "embed_cache_misses_total", "embed_cache_bytes",
)  # fmt: skip


def series(service: ServiceProcess) -> set[str]:
    text = httpx.get(f"{service.url}/metrics").text
    return {line.rsplit(" ", 1)[0] for line in text.splitlines() if line.startswith("embed_")}


def test_every_series_is_there_from_the_start_and_labels_are_bounded(breakable: Start) -> None:
    service = breakable()
    before = series(service)
    for name in EXPECTED:
        assert any(re.fullmatch(rf"{name}(\{{.*\}})?", line) for line in before), name
    embed(service, TEXTS)
    rerank(service, TEXTS[0], TEXTS)
    with service.client() as client:
        for n in range(5):
            client.get(f"/no/such/path/{n}")
            client.put(f"/v1/embeddings/{n}")
        client.post("/v1/embeddings", content=b"{", headers={"content-type": "application/json"})
        client.post("/v1/embeddings", content=b"hello", headers={"content-type": "text/csv"})
        client.get("/v1/rerank")
    assert {line for line in series(service) - before if "_info" not in line} == set()
    (info,) = (line for line in series(service) if line.startswith("embed_model_info"))
    assert 'device="cpu"' in info and 'fingerprint=""' not in info


def test_counts_are_true(breakable: Start) -> None:
    service = breakable()
    with service.client() as client:
        usage = client.post("/v1/embeddings", json={"input": TEXTS}).json()["usage"]
        client.post("/v1/embeddings", json={"input": "far too long " * 500})
        client.get("/nowhere")
    cut = 256  # MiniLM's max_seq_length
    assert metric(service, 'embed_computed_tokens_total{role="embed"}') == usage["total_tokens"] + cut
    assert metric(service, 'embed_padded_tokens_total{role="embed"}') >= usage["total_tokens"] + cut
    assert 0 < metric(service, 'embed_padding_efficiency_ratio{role="embed"}') <= 1
    assert metric(service, 'embed_truncated_inputs_total{role="embed"}') == 1
    assert metric(service, 'embed_inputs_total{role="embed"}') == len(TEXTS) + 1
    assert metric(service, 'embed_requests_total{route="/v1/embeddings",status="200"}') == 2
    assert metric(service, 'embed_requests_total{route="other",status="404"}') == 1
    assert metric(service, 'embed_request_seconds_count{lane="bulk",route="/v1/embeddings"}') == 1
    assert metric(service, "embed_ready") == 1
    # Two micro-batches at least and the canaries; the sum of a histogram leaves the canaries out.
    computed = metric(service, 'embed_compute_seconds_sum{role="embed"}')
    assert 0 < computed < metric(service, "embed_engine_busy_seconds_total")


def test_logs_are_json_with_request_ids_and_without_texts(breakable: Start) -> None:
    service = breakable()
    secret = "xylophone-4711"
    with service.client() as client:
        answer = client.post("/v1/embeddings", json={"input": secret}, headers={"x-request-id": "my-request-1"})
        client.post("/v1/rerank", json={"query": secret, "documents": [secret, {"text": secret}]})
        client.post("/v1/embeddings", json={"input": [secret, 3]})
        client.post("/tokenize", json={"input": secret})
    assert answer.headers["x-request-id"] == "my-request-1"
    # A line is written after its answer was sent.
    poll(lambda: service.log.read_text().count('"request_id"') >= 4, 10, "a line for each request")
    log = service.log.read_text()
    assert secret not in log
    lines = [json.loads(line) for line in log.splitlines()]
    request = next(line for line in lines if line.get("request_id") == "my-request-1")
    assert request["route"] == "/v1/embeddings"
    assert request["status"] == 200
    assert request["level"] == "info"
