"""Lanes and turns: who is answered first. Order is compared, never time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest

from tests.support.service import ServiceProcess, poll
from tests.support.texts import prose
from tests.support.wire import assert_error, close, computed_tokens, embed, metric, rerank

TEXTS = 1_000  # of a bulk job


@pytest.fixture(scope="module")
def job(client: httpx.Client) -> list[str]:
    """A bulk job of 1,000 texts, of a length that takes this machine some seconds, so that there is something to overtake."""
    probe = [prose(100, n) for n in range(50)]
    embed(client, probe)
    start = time.monotonic()
    embed(client, probe)
    words_per_second = 5_000 / (time.monotonic() - start)
    return [prose(min(max(int(8 * words_per_second / TEXTS), 20), 250), n) for n in range(TEXTS)]


def latencies(client: httpx.Client, lane: str, route: str) -> float:
    return metric(client, "embed_request_seconds_count", route=route, lane=lane)


@pytest.mark.parametrize(
    ("count", "words", "header", "lane"),
    [
        (1, 5, None, "interactive"), (8, 5, None, "interactive"), (9, 5, None, "bulk"), (8, 300, None,
        "interactive"), (32, 20, None, "bulk"),
        (1, 5, "bulk", "bulk"), (32, 20, "interactive", "interactive"), (1, 5, "BULK", "bulk"),
    ],
)  # fmt: skip
def test_the_lane_of_an_embedding_request(client: httpx.Client, count: int, words: int, header: str | None, lane: str) -> None:
    before = latencies(client, lane, "/v1/embeddings")
    answer = client.post(
        "/v1/embeddings", json={"input": [prose(words, n) for n in range(count)]}, headers={"x-lane": header} if header else {}
    )
    assert answer.status_code == 200, answer.text
    assert latencies(client, lane, "/v1/embeddings") == before + 1


@pytest.mark.parametrize(("header", "lane"), [(None, "interactive"), ("bulk", "bulk")])
def test_the_lane_of_a_rerank(client: httpx.Client, header: str | None, lane: str) -> None:
    before = latencies(client, lane, "/v1/rerank")
    client.post(
        "/v1/rerank", json={"query": "q", "documents": [prose(40, n) for n in range(40)]}, headers={"x-lane": header} if header else {}
    )
    assert latencies(client, lane, "/v1/rerank") == before + 1


@pytest.mark.parametrize("value", ["fast", "", "canary", "interactive,bulk"])
@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/rerank"])
def test_another_lane_is_400(client: httpx.Client, path: str, value: str) -> None:
    body = {"input": "x", "query": "q", "documents": ["d"]}
    assert_error(client.post(path, json=body, headers={"x-lane": value}), 400, "x-lane", "interactive", "bulk")


@contextmanager
def under_bulk(bulk: httpx.Client, watch: httpx.Client, job: list[str], jobs: int = 1) -> Iterator[list[Future[httpx.Response]]]:
    """`jobs` bulk requests of `job` from `bulk`, all in the queue and one computing when the block begins; all answered at its end."""
    before, queued = computed_tokens(watch), metric(watch, "embed_queued_sequences", lane="bulk")
    with ThreadPoolExecutor(jobs) as pool:
        body = {"input": job, "encoding_format": "base64"}
        running = [pool.submit(bulk.post, "/v1/embeddings", json=body) for _ in range(jobs)]
        waiting = (jobs - 0.5) * TEXTS
        poll(
            lambda: metric(watch, "embed_queued_sequences", lane="bulk") - queued > waiting or any(r.done() for r in running),
            60,
            "the bulk in the queue",
        )
        poll(lambda: computed_tokens(watch) > before, 60, "the first micro-batch of the bulk")
        yield running
        for response in running:
            assert response.result().status_code == 200


def address(service: ServiceProcess, number: int) -> httpx.Client:
    """A caller of its own: another address on loopback."""
    return service.client(transport=httpx.HTTPTransport(local_address=f"127.0.0.{number}"))


@pytest.mark.slow
@pytest.mark.parametrize("caller", [2, 3], ids=["the same caller", "another caller"])
def test_a_search_does_not_wait_for_a_bulk_job(service: ServiceProcess, client: httpx.Client, caller: int, job: list[str]) -> None:
    alone = embed(client, ["a small query", "its expansion"])
    with address(service, 2) as indexer, address(service, caller) as searcher, under_bulk(indexer, client, job) as running:
        small = embed(searcher, ["a small query", "its expansion"])
        best = rerank(searcher, "a small query", job[:10])
        remaining = metric(client, "embed_queued_sequences", lane="bulk")
        assert not running[0].done()
        assert remaining > TEXTS / 4  # long before the bulk ends
    assert close(small, alone)
    assert len(best) == 10


@pytest.mark.slow
def test_callers_take_turns_within_a_lane(service: ServiceProcess, client: httpx.Client, job: list[str]) -> None:
    """A second indexer with 40 texts does not wait for the first one's 2,000."""
    with address(service, 4) as first, address(service, 5) as second, under_bulk(first, client, job, jobs=2) as running:
        embed(second, [prose(30, n) for n in range(40)])
        assert not all(r.done() for r in running)
        assert metric(client, "embed_queued_sequences", lane="bulk") > TEXTS / 4


@pytest.fixture(scope="module")
def behind_a_sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    log = tmp_path_factory.mktemp("sidecar") / "service.log"
    with ServiceProcess({"TRUSTED_SIDECARS": "127.0.0.1"}, log) as process:
        process.wait_healthy()
        yield process


@pytest.mark.slow
def test_callers_behind_one_sidecar_are_told_apart_by_login(behind_a_sidecar: ServiceProcess, job: list[str]) -> None:
    """Five agents share; each has its own login and the same address."""
    order: list[str] = []
    lock = threading.Lock()

    def agent(name: str, texts: int) -> Callable[[], None]:
        def run() -> None:
            with behind_a_sidecar.client(headers={"Tailscale-User-Login": f"{name}@example.com"}) as caller:
                embed(caller, [prose(60, n) for n in range(texts)], encoding_format="base64")
            with lock:
                order.append(name)

        return run

    with (
        behind_a_sidecar.client() as watch,
        behind_a_sidecar.client(headers={"Tailscale-User-Login": "indexer@example.com"}) as indexer,
        under_bulk(indexer, watch, job) as running,
        ThreadPoolExecutor(4) as pool,
    ):
        agents = [pool.submit(agent(f"agent{n}", 30)) for n in range(4)]
        for done in agents:
            done.result()
        assert sorted(order) == [f"agent{n}" for n in range(4)]
        assert not all(r.done() for r in running)
