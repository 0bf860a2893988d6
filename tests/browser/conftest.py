"""Debian's Chromium, driven by Playwright, and pages that are watched: errors, violations of the policy, requests to elsewhere."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, sync_playwright

from tests.support.node import node_package
from tests.support.require import require
from tests.support.service import ROOT, ServiceProcess

CHROMIUM = Path("/usr/bin/chromium")
OUTPUT = ROOT / "test-output" / "browser"  # screenshots, for people
# What newer browsers put between a page and a local address: that is their work, and not what is tested here.
OFF = "HttpsUpgrades,LocalNetworkAccessChecks,BlockInsecurePrivateNetworkRequests,PrivateNetworkAccessRespectPreflightResults"
SIZES = {"desktop": (1440, 900), "phone": (360, 780)}
SECONDS = 60_000  # milliseconds that anything on a page may take on a busy machine


@dataclass
class Watched:
    """A page and what went wrong on it."""

    page: Page
    origin: str
    errors: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", self._request)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(message.text)

    def _request(self, request: Request) -> None:
        if not request.url.startswith(f"{self.origin}/"):
            self.elsewhere.append(request.url)

    def text(self, selector: str) -> str:
        return self.page.locator(selector).inner_text()

    def wait_text(self, selector: str, pattern: str) -> str:
        """Until the element's text matches. Its text."""
        found = self.page.locator(selector).filter(has_text=re.compile(pattern)).first
        found.wait_for(timeout=SECONDS)
        return found.inner_text()

    def shot(self, name: str) -> None:
        """A picture of the whole page under test-output/."""
        OUTPUT.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=OUTPUT / f"{name}.png", full_page=True)


Open = Callable[..., Watched]


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    """Names of the rebinding tests lead to this machine, as their owner's name server would have it."""
    require("browser", CHROMIUM.exists(), "Chromium is not installed (Debian's package chromium)")
    rules = "MAP evil.example 127.0.0.1, MAP gpu.example.com 127.0.0.1, MAP embed.tail.example.org 127.0.0.1"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", f"--host-resolver-rules={rules}", f"--disable-features={OFF}"]
        )
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Browser) -> Iterator[Open]:
    """`open_page(url, size="phone", scheme="dark", …)`: a fresh context, as if in a new browser, on a page that is watched."""
    with ExitStack() as contexts:

        def open_(url: str, *, size: str = "desktop", scheme: Any = "light", **options: Any) -> Watched:
            width, height = SIZES[size]
            context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, **options)
            contexts.callback(context.close)
            context.set_default_timeout(SECONDS)
            watched = Watched(context.new_page(), re.match(r"https?://[^/]+", url)[0])  # type: ignore[index]
            watched.page.goto(url)
            return watched

        yield open_


@pytest.fixture(scope="package")
def axe() -> Path:
    """The script of axe-core, from tests/node's lock."""
    return node_package("axe-core", "browser") / "axe.min.js"


@pytest.fixture(scope="package")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """Asks for a key and a capability; known as gpu.example.com too."""
    folder = tmp_path_factory.mktemp("locked")
    (folder / "keys").write_text("sk-right\n")
    environment = {"API_KEYS_FILE": str(folder / "keys"), "REQUIRE_CAPABILITY": "example.com/cap/qmd", "ALLOWED_HOSTS": "gpu.example.com"}
    with ServiceProcess(environment, folder / "log") as process:
        process.wait_healthy()
        yield process
