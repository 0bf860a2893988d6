"""Keys and capability on the page; who may use a browser against the service."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from playwright.sync_api import Route

from tests.browser.conftest import SECONDS, Open
from tests.support.service import ServiceProcess
from tests.support.wire import metric

pytestmark = pytest.mark.browser

GRANTED = {"Tailscale-App-Capabilities": json.dumps({"example.com/cap/qmd": [{}]})}


def test_it_asks_for_a_key_and_keeps_it_for_the_session(locked: ServiceProcess, open_page: Open) -> None:
    watched = open_page(f"{locked.url}/", extra_http_headers=GRANTED)
    watched.wait_text("#access-sentence", "wants an API key")
    assert watched.text("#state") == "Ready", "what is open is shown all the same"
    assert watched.page.locator("#numbers").is_hidden()
    watched.shot("asks-for-a-key")
    watched.page.locator("#key").fill("sk-wrong")
    watched.page.locator("#key").press("Enter")
    watched.wait_text("#access-sentence", "not one of this server's keys")
    watched.page.locator("#key").fill("two words")
    watched.page.locator("#key").press("Enter")
    watched.wait_text("#access-sentence", "A key has no spaces")
    watched.page.locator("#key").fill("sk-right")
    watched.page.locator("#key").press("Enter")
    watched.page.locator("#plots .line").first.wait_for(state="attached", timeout=SECONDS)
    watched.page.locator("#run").click()
    watched.wait_text("#search-said", "5 texts ranked")
    assert "${QMD_API_KEY}" in watched.text("#config")
    watched.shot("with-a-key")

    kept = watched.page.evaluate("[JSON.stringify(sessionStorage), JSON.stringify(localStorage), document.cookie, location.href]")
    assert kept[0] == '{"qmd-api-key":"sk-right"}'
    assert "sk-right" not in "".join(kept[1:]) + watched.page.content()
    watched.page.reload()
    watched.page.locator("#plots .line").first.wait_for(state="attached", timeout=SECONDS)
    watched.page.goto(f"{locked.url}/docs")
    watched.page.locator(".operation").first.wait_for(timeout=SECONDS)
    assert "Bearer $QMD_API_KEY" in watched.text("#operations")
    watched.page.goto(f"{locked.url}/")
    watched.page.locator("#forget").click()
    watched.wait_text("#access-sentence", "wants an API key")
    assert watched.page.evaluate("sessionStorage.length") == 0
    assert watched.page.locator("#numbers").is_hidden()
    assert watched.elsewhere == []
    assert {error.partition(" (")[0].partition(":")[0] for error in watched.errors} <= {"Failed to load resource"}, watched.errors


def test_another_window_has_no_key(locked: ServiceProcess, open_page: Open) -> None:
    watched = open_page(f"{locked.url}/docs", extra_http_headers=GRANTED)
    watched.wait_text("#access-sentence", "wants an API key")
    assert watched.page.locator(".operation").count() == 0
    assert watched.page.evaluate("sessionStorage.length") == 0


def test_it_says_that_a_capability_is_missing(locked: ServiceProcess, open_page: Open) -> None:
    watched = open_page(f"{locked.url}/")
    watched.wait_text("#access-sentence", "wants an API key")
    watched.page.locator("#key").fill("sk-right")
    watched.page.locator("#key").press("Enter")
    watched.wait_text("#access-sentence", "wants the Tailscale capability example.com/cap/qmd")
    assert watched.page.locator("#key-form").is_hidden()


ATTACK = """<!doctype html><title>attack</title><p>A page that its owner controls.</p>"""
TRIES = """async () => {
    const answers = {};
    for (const [name, path, body] of [
        ["page", "/"], ["stats", "/stats"], ["health", "/health"], ["models", "/v1/models"], ["metrics", "/metrics"], ["docs", "/docs"],
        ["script", "/page/page.js"], ["embeddings", "/v1/embeddings", {input: "a"}], ["rerank", "/rerank", {query: "a", documents: ["b"]}],
    ]) {
        const asked = body ? {method: "POST", body: JSON.stringify(body), headers: {"content-type": "application/json"}} : {};
        answers[name] = await fetch(path, asked).then((answer) => answer.status, (error) => String(error));
    }
    return answers;
}"""


def attacker_s(route: Route) -> None:
    route.fulfill(body=ATTACK, content_type="text/html")


def test_a_page_whose_name_was_bound_to_this_machine_gets_nothing(service: ServiceProcess, open_page: Open) -> None:
    """DNS rebinding: the page came from its owner's server; the name behind it now leads to this service."""
    watched = open_page(f"{service.url}/livez")
    watched.page.context.route("http://evil.example:*/attack", attacker_s)
    watched.page.goto(f"http://evil.example:{service.port}/attack")
    answers: dict[str, Any] = watched.page.evaluate(TRIES)
    assert set(answers.values()) == {421}, answers
    answer = watched.page.goto(f"http://evil.example:{service.port}/")
    assert answer is not None and answer.status == 421
    assert "ALLOWED_HOSTS" in answer.text()


def test_a_name_that_the_owner_allows_is_answered(locked: ServiceProcess, open_page: Open) -> None:
    watched = open_page(f"http://gpu.example.com:{locked.port}/")
    watched.wait_text("#state", "Ready")
    watched.wait_text("#access-sentence", "wants an API key")
    assert [error for error in watched.errors if "401" not in error] == []
    refused = watched.page.goto(f"http://evil.example:{locked.port}/")
    assert refused is not None and refused.status == 421


def test_a_page_elsewhere_cannot_compute_here(service: ServiceProcess, open_page: Open) -> None:
    """A body without a media type needs no permission to be sent, and the answer need not be readable to have cost something."""
    watched = open_page(f"{service.url}/livez")
    watched.page.context.route("http://evil.example/attack", attacker_s)
    watched.page.goto("http://evil.example/attack")
    with httpx.Client(base_url=service.url) as client:
        before = metric(client, "embed_requests_total", route="/v1/embeddings", status="200")
        send = "url => fetch(url, {method: 'POST', mode: 'no-cors', body: new Blob(['{\"input\": \"a\"}'])}).then(() => 1, () => 0)"
        watched.page.evaluate(send, f"{service.url}/v1/embeddings")
        read = "url => fetch(url).then((answer) => answer.text(), () => 'nothing')"
        assert watched.page.evaluate(read, f"{service.url}/stats") == "nothing"
        assert metric(client, "embed_requests_total", route="/v1/embeddings", status="200") == before
