"""Connections between a sidecar and its service that nobody used for a while; test_serve.py has what a short keep-alive does."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.qmdctl_cli import Qmdctl
from tests.support.service import poll
from tests.support.tailnet import Tailnet
from tests.support.tailnet_wire import connections, fins_held_back

pytestmark = [pytest.mark.docker, pytest.mark.tailnet, pytest.mark.slow, pytest.mark.timeout(900)]
POOL_SECONDS = 90  # serve's own: after them it closes a connection itself
NAMES = {
    "qmd-embed": ("qmd-embed", 8001, "/v1/embeddings", {"input": "red"}),
    "qmd-vllm": ("qmd-vllm", 8000, "/v1/completions", {"prompt": "red", "max_tokens": 1}),
}


def post(tailnet: Tailnet, host: str) -> None:
    _, _, path, body = NAMES[host]
    answer: dict[str, Any] = tailnet.ask(tailnet.url(host, path), json=body)
    assert answer["status"] == 200, answer
    assert json.loads(answer["body"])


def test_a_post_after_100_seconds_of_idle(tailnet: Tailnet, true_stack: Qmdctl) -> None:
    for host in NAMES:
        poll(lambda host=host: tailnet.idle_seconds(host) > 100, 110, f"100 idle seconds of {host}", 0.5)
        post(tailnet, host)


def test_a_post_on_a_connection_that_idled_for_long(tailnet: Tailnet, true_stack: Qmdctl) -> None:
    """Past the 5 s for which both services would keep it by default; were it closed, the POST would fail as in test_serve.py."""
    with fins_held_back("qmd-embed"), fins_held_back("qmd-vllm"):
        before = {}
        for host, (container, port, _, _) in NAMES.items():
            post(tailnet, host)
            before[host] = connections(container, port)
        for host, (container, port, _, _) in NAMES.items():
            poll(lambda host=host: tailnet.idle_seconds(host) > 8, 10, f"8 idle seconds of {host}", 0.2)
            post(tailnet, host)
            assert before[host] & connections(container, port), "the POST went over another connection"
