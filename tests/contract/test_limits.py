"""Load: never a 4xx. Past the queue's limit or the deadline it is 503 with Retry-After, and the service goes on."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.support.service import ServiceProcess, poll
from tests.support.texts import prose
from tests.support.wire import assert_error, embed, in_parallel, metric

QUEUE, DEADLINE = 400_000, 4  # tokens, seconds


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    settings = {"MAX_QUEUED_TOKENS": str(QUEUE), "REQUEST_DEADLINE_SECONDS": str(DEADLINE)}
    with ServiceProcess(settings, tmp_path_factory.mktemp("narrow") / "service.log") as process:
        process.wait_healthy()
        yield process


@pytest.fixture
def crowd(narrow: ServiceProcess) -> Iterator[httpx.Client]:
    with narrow.client() as client:
        yield client
        poll(lambda: metric(client, "embed_queued_tokens") == 0, 30, "an empty queue")


def test_past_the_queues_limit(crowd: httpx.Client) -> None:
    before = metric(crowd, "embed_computed_tokens_total")
    answer = crowd.post("/v1/embeddings", json={"input": [prose(300, n) for n in range(2_000)]})  # 512,000 tokens
    error = assert_error(answer, 503)
    assert "MAX_QUEUED_TOKENS" in error["message"]
    assert metric(crowd, "embed_computed_tokens_total") == before
    assert embed(crowd, "one").shape == (1, 384)


def test_past_the_deadline(crowd: httpx.Client) -> None:
    texts = [prose(300, n) for n in range(1_500)]  # 384,000 tokens: more than four seconds on any CPU
    before = metric(crowd, "embed_computed_tokens_total")
    error = assert_error(crowd.post("/v1/embeddings", json={"input": texts}), 503)
    assert "REQUEST_DEADLINE_SECONDS" in error["message"]
    poll(lambda: metric(crowd, "embed_queued_tokens") == 0, 30, "the rest of the late request to leave the queue")
    assert metric(crowd, "embed_computed_tokens_total") - before < 300_000
    assert embed(crowd, "one").shape == (1, 384)


def test_a_crowd_gets_200_or_503_and_nothing_else(crowd: httpx.Client) -> None:
    def bulk(seed: int) -> httpx.Response:
        return crowd.post("/v1/embeddings", json={"input": [prose(300, seed * 1_000 + n) for n in range(1_000)]})

    answers = in_parallel(*(lambda seed=seed: bulk(seed) for seed in range(8)))
    assert {a.status_code for a in answers} <= {200, 503}
    refused = [a for a in answers if a.status_code == 503]
    assert refused
    for answer in refused:
        assert_error(answer, 503)
    poll(lambda: metric(crowd, "embed_queued_tokens") == 0, 30, "an empty queue")
    assert embed(crowd, "one").shape == (1, 384)
    assert crowd.get("/health").status_code == 200


@pytest.mark.parametrize("clients", [32])
def test_a_burst_of_singles_is_all_answered(client: httpx.Client, clients: int) -> None:
    rows = in_parallel(*(lambda n=n: embed(client, f"note {n} of a burst") for n in range(clients)))
    assert len({r.tobytes() for r in rows}) == clients
