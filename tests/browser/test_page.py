"""The page at / in a real browser, against the running service."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from qmdctl.laptop.clients import load_clients
from qmdctl.laptop.models import Models
from qmdctl.laptop.names import Names
from tests.browser.conftest import SECONDS, Open, Watched
from tests.support.service import ServiceProcess, poll

pytestmark = pytest.mark.browser


def filled(watched: Watched) -> Watched:
    """Once it shows numbers."""
    watched.wait_text("#state", "Ready")
    watched.page.locator("#plots .line").first.wait_for(state="attached", timeout=SECONDS)
    return watched


def well(watched: Watched) -> None:
    assert watched.errors == []
    assert watched.elsewhere == []


def test_it_fills(service: ServiceProcess, open_page: Open, minilm: str) -> None:
    watched = filled(open_page(f"{service.url}/"))
    facts = watched.text("#facts")
    for fact in (
        minilm,
        "bert, 384 dimensions",
        "revision local-",
        "cpu, float32",
        "packed, attention sdpa",
        service.health()[1]["fingerprint"],
    ):
        assert fact in facts
    assert re.search(r"Ready since \d", watched.text("#since"))
    memory = watched.page.locator("#memory-bar").get_attribute("aria-label") or ""
    weights = re.search(r"Weights of the models (\d+) MB", memory)
    assert weights and 85 <= int(weights[1]) <= 95, memory  # 22.6 million parameters in float32
    assert "Free" in memory and "GB" in memory
    labels = watched.page.locator("#plots svg").evaluate_all("plots => plots.map(plot => plot.getAttribute('aria-label'))")
    assert [label.partition(":")[0] for label in labels] == ["Texts per second", "Tokens per second", "Search latency", "Waiting texts"]
    assert all(": now " in label for label in labels)
    watched.shot("filled")
    well(watched)


def test_plots_move_under_load(service: ServiceProcess, open_page: Open) -> None:
    watched = filled(open_page(f"{service.url}/"))
    watched.page.locator("#table-details summary").click()
    lines = watched.page.locator("#plot-texts .line").first.get_attribute("d")
    go_on = True

    def load() -> None:
        with service.client() as client:
            while go_on:
                client.post("/v1/embeddings", json={"input": ["a note about the garden"] * 40})
                client.post("/v1/rerank", json={"query": "garden", "documents": ["a note", "another"]}).raise_for_status()

    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(load)
        try:
            watched.wait_text("#plot-texts .now", r"^[1-9]")
            watched.wait_text("#plot-tokens .now", r"^[1-9]")
            watched.wait_text("#plot-latency .now", r"ms$|s$")
            watched.page.locator("#plot-latency .line.b").first.wait_for(state="attached", timeout=SECONDS)
            watched.shot("under-load")
        finally:
            go_on = False
        loading.result(60)
    assert watched.page.locator("#plot-texts .line").first.get_attribute("d") != lines
    label = watched.page.locator("#plot-latency svg").get_attribute("aria-label") or ""
    assert re.search(r"now [\d.]+ m?s; p95 [\d.]+ m?s of \d+ searches", label), label
    rows = watched.page.locator("#table tbody tr").evaluate_all("rows => rows.map(row => [...row.cells].map(cell => cell.textContent))")
    assert any(float(row[1].split()[0]) > 0 for row in rows), rows
    assert any(int(row[3]) > 0 for row in rows), rows
    well(watched)


@pytest.mark.parametrize("way", ["rerank", "cosine"])
def test_a_search_answers(service: ServiceProcess, open_page: Open, way: str) -> None:
    watched = filled(open_page(f"{service.url}/"))
    watched.page.locator(f"input[value={way}]").check()
    watched.page.locator("#query").press("Enter")
    said = watched.wait_text("#search-said", "5 texts ranked in")
    assert re.search(r"on the server: queue [\d.]+ ms, tokenise [\d.]+ ms, compute [\d.]+ m?s", said), said
    answers = watched.page.locator("#answers li").all_inner_texts()
    assert len(answers) == 5
    assert answers[0].startswith("Passports are renewed at the town hall")
    scores = [float(re.search(r"score (-?[\d.]+)", answer)[1]) for answer in answers]  # type: ignore[index]
    assert scores == sorted(scores, reverse=True)
    with service.client() as client:
        texts = watched.page.locator("#texts").input_value().split("\n")
        expected = client.post("/v1/rerank", json={"query": "How do I renew a passport?", "documents": texts}).json()["results"]
    assert scores == pytest.approx([result["relevance_score"] for result in expected], abs=2e-4)
    watched.shot(f"searched-{way}")
    well(watched)


def test_what_cannot_be_searched_is_said(service: ServiceProcess, open_page: Open) -> None:
    watched = filled(open_page(f"{service.url}/"))
    for query, texts, sentence in (
        (" ", "a note", "Write a question first."),
        ("question", "\n \n", "Write at least one text."),
        ("question", "a note\n" * 1001, "These are 1001 texts; one search takes up to 1000."),
    ):
        watched.page.locator("#query").fill(query)
        watched.page.locator("#texts").fill(texts)
        watched.page.locator("#run").click()
        assert watched.wait_text("#search-error", re.escape(sentence)) == sentence
    well(watched)
    refusal = {"error": {"message": "The queue is full: 9 tokens wait.", "code": "queue_full"}, "detail": ""}
    watched.page.route("**/v1/rerank", lambda route: route.fulfill(status=503, json=refusal))
    watched.page.locator("#texts").fill("a note")
    watched.page.locator("#run").click()
    watched.wait_text("#search-error", "The queue is full")
    watched.page.unroute("**/v1/rerank")
    watched.page.locator("#texts").fill('<img src=x onerror="alert(1)"> and <b>markup</b>')
    watched.page.locator("#run").click()
    assert '<img src=x onerror="alert(1)"> and <b>markup</b>' in watched.wait_text("#answers li", "markup")
    assert watched.page.locator("#search-error").is_hidden()


def test_configurations_are_those_of_qmdctl(service: ServiceProcess, open_page: Open, minilm: str) -> None:
    watched = filled(open_page(f"{service.url}/", permissions=["clipboard-read", "clipboard-write"]))
    watched.page.locator("#generate").fill("https://qmd-vllm.example.ts.net/")
    for name, client in load_clients().items():
        watched.page.locator("#client").select_option(name)
        names = Names(service.url, "https://qmd-vllm.example.ts.net")
        assert watched.page.locator("#config").text_content() == client.render(names, Models(minilm, minilm, "Qwen/Qwen3-4B")), name
    watched.page.locator("#copy").press("Enter")
    watched.wait_text("#copied", "Copied")
    copied = watched.page.evaluate("navigator.clipboard.readText()")
    assert copied == watched.page.locator("#config").text_content()
    well(watched)


def test_copying_without_the_clipboard_s_interface(service: ServiceProcess, open_page: Open) -> None:
    """As on a page that is neither on loopback nor over https."""
    watched = filled(open_page(f"{service.url}/"))
    watched.page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    watched.page.locator("#copy").click()
    watched.wait_text("#copied", r"Copied\.|Selected: press Ctrl\+C")
    assert watched.page.evaluate("getSelection().toString()").strip() == (watched.page.locator("#config").text_content() or "").strip()
    well(watched)


def test_without_scripts_it_says_what_is_served(service: ServiceProcess, open_page: Open, minilm: str) -> None:
    watched = open_page(f"{service.url}/", java_script_enabled=False)
    assert watched.text("#sentence") == "Both models answer."
    assert minilm in watched.text("#facts")
    assert "need JavaScript" in watched.text("body")
    assert watched.page.locator("#search").is_hidden()
    watched.shot("without-scripts")


def test_the_reference_shows_every_operation(service: ServiceProcess, open_page: Open) -> None:
    watched = open_page(f"{service.url}/docs")
    watched.page.locator(".operation").first.wait_for(timeout=SECONDS)
    shown = watched.text("#operations")
    with service.client() as client:
        paths = client.get("/openapi.json").json()["paths"]
    assert [path for path in paths if path not in shown] == []
    watched.page.locator("#contents a", has_text="/v1/rerank").click()
    rerank = watched.page.locator("#op-v1-rerank")
    assert "return_documents" in rerank.inner_text()
    rerank.locator("summary", has_text="Errors").click()
    assert "Retry-After" in rerank.inner_text()
    watched.shot("reference")
    well(watched)


def test_it_says_when_the_server_is_gone_and_comes_back(service: ServiceProcess, open_page: Open) -> None:
    watched = filled(open_page(f"{service.url}/"))
    watched.page.route("**/stats**", lambda route: route.abort())
    watched.wait_text("#sentence", "does not answer.*Trying again")
    assert watched.page.title() == "No answer · QMD embed service"
    watched.page.unroute("**/stats**")
    watched.wait_text("#sentence", "Both models answer")
    assert watched.page.title() == "QMD embed service"
    assert watched.elsewhere == []


def test_it_says_so_when_the_box_vanishes(service: ServiceProcess, open_page: Open) -> None:
    """No connection ends where a box loses its power or its network: what was asked is never answered."""
    watched = filled(open_page(f"{service.url}/"))
    watched.page.route("**/stats**", lambda route: None)
    watched.wait_text("#sentence", "does not answer.*Trying again")
    assert watched.page.locator("#state").text_content() == "No answer"
    watched.page.unroute("**/stats**")
    watched.wait_text("#sentence", "Both models answer")
    well(watched)


NO_BYTES: dict[str, Any] = {"done_bytes": 0, "total_bytes": 0, "stalled": False}
STATES: list[tuple[dict[str, Any], str, str]] = [
    ({"status": "paused", "phase": "paused"}, "Paused", "free for something else"),
    ({"status": "idle", "phase": "idle"}, "Idle", "next request loads the models"),
    (
        {"status": "loading", "phase": "unresponsive", "progress": {**NO_BYTES, "text": "the engine does not answer"}},
        "Loading",
        "Not ready yet: the engine does not answer[.]",
    ),
    (
        {"status": "loading", "phase": "placing", "progress": {**NO_BYTES, "text": "waiting for a box (no box has 1 GPU free)"}},
        "Loading",
        "Not ready yet: waiting for a box [(]no box has 1 GPU free[)][.]",
    ),
    (
        {"status": "loading", "phase": "downloading", "progress": {**NO_BYTES, "text": "downloading 0 of 8 GB", "stalled": True}},
        "Loading",
        "Not ready yet: downloading[.] .*check the network",
    ),
]
GB = 10**9
CARD = {"weights": 8 * GB, "service": GB, "kv_cache": 6 * GB, "other": 2 * GB, "free": 7 * GB}


def test_words_for_every_state_and_every_memory(service: ServiceProcess, open_page: Open) -> None:
    """As a service would answer that is paused, unloaded, hung or without a network, on a card beside vLLM."""
    watched = filled(open_page(f"{service.url}/"))
    real = httpx.get(f"{service.url}/stats").json()
    parts = [{"name": name, "bytes": size} for name, size in CARD.items()]
    real["memory"] = {"kind": "card", "total_bytes": 24 * GB, "parts": parts, "kv_cache_used": 0.25}
    real["samples"] = []
    answer: dict[str, Any] = {}
    watched.page.route("**/stats**", lambda route: route.fulfill(json=answer))
    for health, state, words in STATES:
        answer = {**real, "health": {**real["health"], **health}}
        watched.wait_text("#sentence", words)
        assert watched.text("#state") == state
    legend = watched.text("#memory-parts")
    assert "vLLM’s KV cache" in legend and "6.0 GB, cache 25 % in use" in legend
    assert "GPU’s own memory. 24.0 GB in all" in watched.text("#memory-kind")
    widths = watched.page.locator("#memory-bar .part").evaluate_all("parts => parts.map(part => part.getBoundingClientRect().width)")
    assert widths[0] / sum(widths) == pytest.approx(8 / 24, abs=0.01)
    watched.shot("card")
    answer = {**real, "memory": None}
    watched.page.locator("#memory").wait_for(state="hidden")
    well(watched)


def test_another_process_starts_the_plots_anew(service: ServiceProcess, open_page: Open) -> None:
    """A service that was restarted counts its samples from 1."""
    watched = filled(open_page(f"{service.url}/"))
    asked: list[str] = []
    later = httpx.get(f"{service.url}/stats").json()
    later["started_at"] += 100
    later["samples"] = []

    def restarted(route: object, request: object) -> None:
        asked.append(request.url)  # type: ignore[attr-defined]
        route.fulfill(body=json.dumps(later), content_type="application/json")  # type: ignore[attr-defined]

    watched.page.route("**/stats**", restarted)
    poll(lambda: watched.page.wait_for_timeout(100) or len(asked) >= 2, 60, "two answers of the new process")
    assert [re.sub(r".*after=0$", "all", url) for url in asked[1:2]] == ["all"]
    well(watched)
