"""Every metric, named once. All series exist from the start and every label is bounded.

Names follow Prometheus: base units, `_total` for counters. `route` is a route's template or "other", never a raw path.
"""

from __future__ import annotations

from itertools import product

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE

__all__ = ["CONTENT_TYPE", "REGISTRY", "render"]

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)

ROUTES = (
    "/v1/embeddings", "/v1/rerank", "/v1/score", "/tokenize", "/detokenize", "/v1/models", "/v1/completions", "/v1/chat/completions",
    "/health", "/livez", "/version", "/metrics", "/stats", "/openapi.json", "/docs", "/", "other",
)  # fmt: skip
COMPUTE_ROUTES = ("/v1/embeddings", "/v1/rerank", "/v1/score")
STATUSES = ("200", "400", "401", "403", "404", "405", "413", "415", "421", "499", "500", "503")  # 499: the client left
ROLES = ("embed", "rerank")
LANES = ("interactive", "bulk")
UNLOADED_CAUSES = ("paused", "idle")
RESTART_CAUSES = ("exited", "hang", "stuck", "canary", "failed", "refused")

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 110)
TOKENS = (64, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)

requests = Counter("embed_requests", "Requests answered.", ("route", "status"), registry=REGISTRY)
request_seconds = Histogram(
    "embed_request_seconds", "Time from a request's first byte to its answer.", ("route", "lane"), buckets=SECONDS, registry=REGISTRY
)
queue_seconds = Histogram(
    "embed_queue_seconds", "Time until a request's first sequence went to the engine.", ("lane",), buckets=SECONDS, registry=REGISTRY
)
tokenise_seconds = Histogram("embed_tokenise_seconds", "Time to tokenise one request.", ("role",), buckets=SECONDS, registry=REGISTRY)
compute_seconds = Histogram("embed_compute_seconds", "Time to compute one micro-batch.", ("role",), buckets=SECONDS, registry=REGISTRY)
batch_tokens = Histogram(
    "embed_batch_tokens", "Tokens in a micro-batch, shared prefixes once.", ("role",), buckets=TOKENS, registry=REGISTRY
)
batch_sequences = Histogram(
    "embed_batch_sequences", "Sequences in a micro-batch.", ("role",), buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256), registry=REGISTRY
)
computed_tokens = Counter("embed_computed_tokens", "Real tokens computed, canaries not counted.", ("role",), registry=REGISTRY)
padded_tokens = Counter("embed_padded_tokens", "Positions computed, padding included, canaries not counted.", ("role",), registry=REGISTRY)
padding_efficiency = Gauge(
    "embed_padding_efficiency_ratio", "Real tokens of the last micro-batch over its computed positions.", ("role",), registry=REGISTRY
)
inputs = Counter("embed_inputs", "Texts, or pairs of them, that requests brought.", ("role",), registry=REGISTRY)
truncated_inputs = Counter("embed_truncated_inputs", "Texts that were cut to the model's length.", ("role",), registry=REGISTRY)
out_of_memory_splits = Counter(
    "embed_out_of_memory_splits", "Micro-batches halved because the device ran out of memory.", registry=REGISTRY
)
failed_rows = Counter("embed_failed_rows", "Sequences that the model could not compute.", ("role",), registry=REGISTRY)
engine_restarts = Counter("embed_engine_restarts", "Engines started again, by what ended the one before.", ("cause",), registry=REGISTRY)
engine_busy_seconds = Counter(
    "embed_engine_busy_seconds", "Seconds in which the devices computed, all engines together.", registry=REGISTRY
)
engine_idle_seconds = Counter("embed_engine_idle_seconds", "Seconds in which a device did nothing while work waited.", registry=REGISTRY)
requeued_sequences = Counter("embed_requeued_sequences", "Sequences computed again because their engine ended.", registry=REGISTRY)
dropped_clients = Counter("embed_dropped_clients", "Requests whose client left before the answer.", registry=REGISTRY)
queued_sequences = Gauge("embed_queued_sequences", "Sequences that wait.", ("lane",), registry=REGISTRY)
queued_tokens = Gauge("embed_queued_tokens", "Tokens that wait.", registry=REGISTRY)
token_budget = Gauge(
    "embed_token_budget", "Most tokens that the next micro-batch may have, of the engine that answered last.", ("role",), registry=REGISTRY
)
ready = Gauge("embed_ready", "1 while /health is green.", registry=REGISTRY)
engine_up = Gauge("embed_engine_up", "Engines that take work.", registry=REGISTRY)
unloaded = Gauge("embed_unloaded", "1 while the models are off the device on purpose.", ("cause",), registry=REGISTRY)
cache_hits = Counter("embed_cache_hits", "Sequences answered from the result cache.", ("role",), registry=REGISTRY)
cache_misses = Counter("embed_cache_misses", "Sequences looked up in the result cache and not found.", ("role",), registry=REGISTRY)
cache_bytes = Gauge("embed_cache_bytes", "Memory of the result cache.", registry=REGISTRY)
model = Info("embed_model", "What is served.", registry=REGISTRY)


def _present_from_start() -> None:
    for route, status in product(ROUTES, STATUSES):
        requests.labels(route, status)
    for route, lane in product(COMPUTE_ROUTES, LANES):
        request_seconds.labels(route, lane)
    for lane in LANES:
        queue_seconds.labels(lane)
        queued_sequences.labels(lane)
    for role in ROLES:
        for metric in (
            tokenise_seconds, compute_seconds, batch_tokens, batch_sequences, computed_tokens, padded_tokens,
            padding_efficiency, inputs, truncated_inputs, failed_rows, token_budget, cache_hits, cache_misses,
        ):  # fmt: skip
            metric.labels(role)
    for cause in RESTART_CAUSES:
        engine_restarts.labels(cause)
    for cause in UNLOADED_CAUSES:
        unloaded.labels(cause)
    model.info({"embed": "", "rerank": "", "device": "", "dtype": "", "fingerprint": "", "executor": ""})


_present_from_start()


def render() -> bytes:
    """The text exposition of every series."""
    return generate_latest(REGISTRY)
