"""GET /stats, the pages' files and their headers, and who is refused for his Host or his origin."""

from __future__ import annotations

import socket
import time

import httpx
import pytest

from embed_service.routes.paths import ASSET_PATHS
from embed_service.routes.stats import NO_STORE
from embed_service.schemas.stats import Stats
from tests.support.service import ServiceProcess, poll
from tests.support.wire import assert_error

BROWSER = {"User-Agent": "Mozilla/5.0 (X11; Linux x86_64)"}


def test_stats_are_as_documented(client: httpx.Client, minilm: str) -> None:
    answer = client.get("/stats")
    assert NO_STORE.items() <= dict(answer.headers).items()
    stats = Stats.model_validate(answer.json())
    assert set(answer.json()) == set(Stats.model_fields)
    health, told = client.get("/health").json(), answer.json()["health"]
    assert told.pop("uptime_seconds") <= health.pop("uptime_seconds")
    assert told == health
    assert stats.started_at <= (stats.ready_since or 0) <= time.time()
    assert {role: facts.model for role, facts in stats.models.items()} == {"embed": minilm, "rerank": minilm}
    assert (stats.models["embed"].dimensions, stats.models["rerank"].kind) == (384, "cosine")
    assert set(stats.now.lanes) == {"interactive", "bulk"}
    assert stats.generation is False


def test_memory_adds_up(client: httpx.Client) -> None:
    memory = Stats.model_validate(client.get("/stats").json()).memory
    assert memory is not None and memory.kind == "machine"
    parts = {part.name: part.bytes for part in memory.parts}
    assert sum(parts.values()) == memory.total_bytes
    assert 85e6 < parts["weights"] < 95e6  # 22.6 million parameters in float32
    assert parts["service"] > 100e6, "two Python processes"
    assert parts["free"] > 0


def test_samples_come_on_their_own_and_after_the_last_seen(client: httpx.Client) -> None:
    seen = poll(lambda: client.get("/stats").json()["samples"], 30, "a sample")
    last = seen[-1]["id"]
    later = poll(lambda: client.get("/stats", params={"after": last}).json()["samples"], 30, "the next sample")
    assert later[0]["id"] == last + 1
    assert [sample["id"] for sample in seen] == list(range(seen[0]["id"], last + 1))
    assert client.get("/stats", params={"after": 10**15}).json()["samples"] == []


def test_a_search_and_its_texts_are_in_the_numbers(client: httpx.Client) -> None:
    before = client.get("/stats").json()
    last = before["samples"][-1]["id"] if before["samples"] else 0
    client.post("/v1/rerank", json={"query": "one", "documents": ["a note", "another note"]}).raise_for_status()
    samples = poll(
        lambda: [s for s in client.get("/stats", params={"after": last}).json()["samples"] if s["searches"]], 30, "the search in a sample"
    )
    assert samples[0]["search_p50"] is not None and 0 < samples[0]["search_p50"] <= samples[0]["search_p95"]
    assert samples[0]["texts_per_second"] > 0 and samples[0]["tokens_per_second"] > samples[0]["texts_per_second"]
    after = client.get("/stats").json()["search_seconds"]
    assert after["searches"] >= 1 and 0 < after["p50"] <= after["p95"]


def test_bulk_and_refused_requests_are_no_searches(client: httpx.Client) -> None:
    def searches() -> int:
        return int(client.get("/stats").json()["search_seconds"]["searches"])

    before = searches()
    client.post("/v1/embeddings", json={"input": ["a note"] * 40}).raise_for_status()
    client.post("/v1/rerank", json={"query": 3, "documents": ["a note"]})
    client.get("/health")
    assert searches() == before


@pytest.mark.parametrize("value", ["", "x", "-1", "1.5", "1e3", "\u0661", "9" * 17, str(2**53)])
def test_a_wrong_after_is_400_and_named(client: httpx.Client, value: str) -> None:
    assert assert_error(client.get("/stats", params={"after": value}), 400, "after")["param"] == "after"


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_let_nothing_in_from_elsewhere(client: httpx.Client, path: str) -> None:
    answer = client.get(path)
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert {policy[name] for name in ("script-src", "style-src", "connect-src", "img-src")} == {"'self'"}
    assert {policy[name] for name in ("base-uri", "form-action", "frame-ancestors")} == {"'none'"}
    assert policy["require-trusted-types-for"] == "'script'"
    for name, value in {
        "x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin", "cache-control": "no-store",
    }.items():  # fmt: skip
        assert answer.headers[name] == value
    assert (
        client.get(path, headers={"Host": "gpu.local", "X-Forwarded-Proto": "https"}).headers["cross-origin-opener-policy"] == "same-origin"
    )
    assert "cross-origin-opener-policy" not in client.get(path, headers={"Host": "gpu.local"}).headers
    assert "http" not in answer.text.replace("http-equiv", ""), "an address of somewhere else"
    assert "style=" not in answer.text and "<style" not in answer.text and "onclick" not in answer.text


@pytest.mark.parametrize("path", sorted(ASSET_PATHS))
def test_every_file_of_the_pages(client: httpx.Client, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    kinds = {"css": "text/css", "js": "text/javascript", "json": "application/json", "svg": "image/svg+xml"}
    assert answer.headers["content-type"].partition(";")[0] == kinds[path.rpartition(".")[2]]
    assert answer.headers["x-content-type-options"] == "nosniff"
    again = client.get(path, headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert client.head(path).headers["content-length"] == str(len(answer.content))
    assert client.post(path).status_code == 405


@pytest.mark.parametrize("path", ["/page/page.html", "/page/../settings.py", "/page/%2e%2e/settings.py", "/page/", "/page/none.js"])
def test_no_other_file(client: httpx.Client, path: str) -> None:
    assert_error(client.get(path), 404)


def test_a_name_that_nobody_knows_is_refused_to_browsers_alone(client: httpx.Client) -> None:
    evil = {"Host": "evil.example:8001"}
    for path in ("/", "/health", "/v1/models", "/metrics"):
        assert_error(client.get(path, headers={**evil, **BROWSER}), 421, "ALLOWED_HOSTS")
        assert client.get(path, headers=evil).status_code == 200
    assert_error(client.get("/stats", headers=evil), 421, "evil.example")
    body = {"query": "one", "documents": ["a note"]}
    assert client.post("/v1/rerank", json=body, headers={"Host": "qmd-embed.tail.example.org"}).status_code == 200
    assert_error(client.post("/v1/rerank", json=body, headers={**evil, "Origin": "http://evil.example:8001"}), 421)
    assert_error(client.post("/v1/rerank", json=body, headers={"Origin": "https://evil.example"}), 403, "ALLOWED_HOSTS")


@pytest.mark.parametrize("path", ["/", "/health", "/stats"])
def test_http_1_0_has_no_host(service: ServiceProcess, path: str) -> None:
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as connection:
        connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        assert connection.makefile("rb").readline().split()[1] == b"200"
