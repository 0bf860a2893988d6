"""axe-core finds no violation; nothing is wider than the screen; the keyboard reaches everything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.browser.conftest import SECONDS, SIZES, Open, Watched
from tests.browser.test_page import filled
from tests.support.service import ServiceProcess

pytestmark = pytest.mark.browser

LOOKS = [(size, scheme) for size in SIZES for scheme in ("light", "dark")]
RULES = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}}


def violations(watched: Watched, axe: Path) -> list[str]:
    """What axe-core has to say, in a context that lets its script in."""
    watched.page.add_script_tag(path=axe)
    found: list[dict[str, Any]] = watched.page.evaluate("async (options) => (await axe.run(options)).violations", RULES)
    return [f"{rule['id']}: {rule['help']}: {node['html'][:200]} {node['failureSummary']}" for rule in found for node in rule["nodes"]]


def fits(watched: Watched) -> None:
    assert watched.page.evaluate("document.documentElement.scrollWidth") <= watched.page.evaluate("innerWidth")


@pytest.mark.parametrize(("size", "scheme"), LOOKS)
def test_the_page(service: ServiceProcess, open_page: Open, axe: Path, size: str, scheme: str) -> None:
    watched = filled(open_page(f"{service.url}/", size=size, scheme=scheme, bypass_csp=True))
    watched.page.locator("#run").click()
    watched.wait_text("#search-said", "5 texts ranked")
    watched.page.locator("#table-details summary").click()
    assert violations(watched, axe) == []
    fits(watched)
    watched.page.locator("#table-details summary").click()
    watched.shot(f"page-{size}-{scheme}")


@pytest.mark.parametrize(("size", "scheme"), [("desktop", "light"), ("phone", "dark")])
def test_the_reference(service: ServiceProcess, open_page: Open, axe: Path, size: str, scheme: str) -> None:
    watched = open_page(f"{service.url}/docs", size=size, scheme=scheme, bypass_csp=True)
    watched.page.locator(".operation").first.wait_for(timeout=SECONDS)
    watched.page.locator("#op-v1-rerank details").evaluate_all("all => all.forEach((details) => (details.open = true))")
    assert violations(watched, axe) == []
    fits(watched)


@pytest.mark.parametrize(("size", "scheme"), [("phone", "dark"), ("desktop", "light")])
def test_the_page_that_asks_for_a_key(locked: ServiceProcess, open_page: Open, axe: Path, size: str, scheme: str) -> None:
    watched = open_page(f"{locked.url}/", size=size, scheme=scheme, bypass_csp=True)
    watched.page.locator("#key").fill("sk-wrong")
    watched.page.locator("#key").press("Enter")
    watched.wait_text("#access-sentence", "not one of this server's keys")
    assert violations(watched, axe) == []
    fits(watched)
    watched.shot(f"key-{size}-{scheme}")


def test_the_keyboard_reaches_everything(service: ServiceProcess, open_page: Open) -> None:
    watched = filled(open_page(f"{service.url}/"))
    reached: list[str] = []
    for _ in range(40):
        watched.page.keyboard.press("Tab")
        seen = "document.activeElement.id || document.activeElement.textContent.trim().slice(0, 30)"
        reached.append(watched.page.evaluate(seen))
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        assert watched.page.evaluate(outline) != "none", f"{reached[-1]} shows no focus"
        if reached[-1] == "copy":
            break
    assert reached[0] == "Skip to the content"
    for name in ("API reference", "These numbers as a table", "query", "texts", "run", "client", "generate", "config", "copy"):
        assert name in reached, reached
