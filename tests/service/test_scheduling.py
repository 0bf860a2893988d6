"""Lanes, cancellation and out of memory, over HTTP."""

from __future__ import annotations

import threading
from collections.abc import Callable

import httpx
import numpy as np

from tests.service.conftest import TEXTS, embed, metric
from tests.support.service import ServiceProcess, poll

Start = Callable[..., ServiceProcess]
BULK = [f"{n} " + "a paragraph of a long notebook that is being indexed " * 12 for n in range(400)]


def test_a_search_overtakes_a_bulk_job(breakable: Start) -> None:
    service = breakable()
    order: list[str] = []

    def run(name: str, texts: list[str]) -> None:
        embed(service, texts)
        order.append(name)

    bulk = threading.Thread(target=run, args=("bulk", BULK))
    bulk.start()
    poll(lambda: metric(service, 'embed_queued_sequences{lane="bulk"}') > 100, 30, "a bulk queue", every=0.005)
    for n in range(3):
        run(f"search {n}", ["a short query"])
    bulk.join()
    assert order == ["search 0", "search 1", "search 2", "bulk"]


def test_a_client_that_leaves_stops_costing(breakable: Start) -> None:
    service = breakable()
    with service.client() as client:
        total = client.post("/v1/embeddings", json={"input": BULK[:8]}).json()["usage"]["total_tokens"] / 8 * len(BULK)
    before = metric(service, 'embed_computed_tokens_total{role="embed"}')
    try:
        httpx.post(f"{service.url}/v1/embeddings", json={"input": BULK}, timeout=httpx.Timeout(5, read=0.5))
        raise AssertionError("400 texts were answered within half a second: make the job larger")
    except httpx.ReadTimeout:
        pass
    poll(lambda: metric(service, "embed_dropped_clients_total") == 1, 30, "the dropped client")
    poll(lambda: metric(service, "embed_queued_tokens") == 0, 30, "an empty queue")
    assert len(embed(service, ["the service goes on"])) == 1
    assert metric(service, 'embed_computed_tokens_total{role="embed"}') - before < total / 2


def test_out_of_memory_splits_and_retries(breakable: Start) -> None:
    """FAKE: there is no GPU to fill up here, so computing more than 3 sequences at once raises torch's own error."""
    expected = embed(breakable(), TEXTS)
    service = breakable(FAULT="oom", FAULT_SEQUENCES="3")
    budget = metric(service, 'embed_token_budget{role="embed"}')
    assert np.abs(embed(service, TEXTS) - expected).max() < 1e-5
    assert metric(service, "embed_out_of_memory_splits_total") > 0
    assert metric(service, 'embed_engine_restarts_total{cause="exited"}') == 0
    after = metric(service, 'embed_token_budget{role="embed"}')
    assert after > 0 and (budget == 0 or after < budget)
    assert service.health()[0] == 200
