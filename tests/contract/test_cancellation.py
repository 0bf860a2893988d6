"""A client that goes away stops costing compute."""

from __future__ import annotations

import json
import socket

import httpx
import pytest

from tests.support.service import ServiceProcess, poll
from tests.support.texts import prose
from tests.support.wire import computed_tokens, embed, metric

TEXTS = [prose(200, n) for n in range(1_500)]  # about 330,000 tokens


def send_and_leave(service: ServiceProcess, client: httpx.Client, path: str, body: object) -> None:
    """Send the whole request, wait until it is being computed, close the connection."""
    before = computed_tokens(client)
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        connection.sendall(head.encode() + content)
        poll(lambda: computed_tokens(client) > before, 60, "the first micro-batch")


@pytest.mark.slow
def test_a_dropped_embeddings_request(service: ServiceProcess, client: httpx.Client) -> None:
    before, dropped = computed_tokens(client), metric(client, "embed_dropped_clients_total")
    send_and_leave(service, client, "/v1/embeddings", {"input": TEXTS})
    poll(lambda: metric(client, "embed_dropped_clients_total") == dropped + 1, 30, "the drop to be counted")
    poll(lambda: metric(client, "embed_queued_sequences") == 0, 5, "the rest to leave the queue")
    spent = computed_tokens(client) - before
    assert spent < 150_000
    embed(client, TEXTS[:64])  # behind whatever was still at the engine
    assert computed_tokens(client) - before - spent < 2 * 16_384 + 64 * 256


@pytest.mark.slow
def test_a_dropped_rerank(service: ServiceProcess, client: httpx.Client) -> None:
    before, dropped = computed_tokens(client), metric(client, "embed_dropped_clients_total")
    send_and_leave(service, client, "/v1/rerank", {"query": "private networks", "documents": TEXTS[:1_000]})
    poll(lambda: metric(client, "embed_dropped_clients_total") == dropped + 1, 30, "the drop to be counted")
    poll(lambda: metric(client, "embed_queued_sequences") == 0, 5, "the rest to leave the queue")
    assert computed_tokens(client) - before < 100_000


def test_a_client_that_leaves_in_the_middle_of_its_body(service: ServiceProcess, client: httpx.Client) -> None:
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", service.port)) as connection:
            connection.sendall(
                b'POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"input": ["x"'
            )
    assert embed(client, "still here").shape == (1, 384)
