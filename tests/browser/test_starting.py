"""The page while models are downloaded and loaded, and with a model that cannot be served."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.conftest import Open
from tests.browser.test_accessibility import fits, violations
from tests.browser.test_page import filled, well
from tests.support.hub import FakeHub
from tests.support.service import ServiceProcess, poll

pytestmark = pytest.mark.browser

ID = "org/minilm"
SLOW = 4_000_000  # bytes per second


@pytest.fixture
def hub(minilm: str) -> Iterator[FakeHub]:
    with FakeHub() as fake:
        fake.add(ID, Path(minilm))
        yield fake


def test_it_follows_a_start_to_its_end(hub: FakeHub, tmp_path: Path, open_page: Open, axe: Path) -> None:
    hub.bytes_per_second = SLOW
    environment = {**hub.environment(tmp_path / "home"), "EMBED_MODEL": ID, "RERANK_MODEL": ID}
    with ServiceProcess(environment, tmp_path / "log") as service:
        poll(lambda: service.health()[1].get("phase") == "downloading", 120, "a download")
        watched = open_page(f"{service.url}/", bypass_csp=True)
        watched.wait_text("#bytes", r"^[1-9]\d* MB of 92 MB$")
        assert watched.text("#state") == "Loading"
        assert watched.page.title().startswith("Loading")
        assert 0 < watched.page.locator("#bar").evaluate("bar => bar.position") < 1
        watched.shot("downloading")
        assert violations(watched, axe) == []
        hub.bytes_per_second = None
        filled(watched)
        assert watched.page.locator("#download").is_hidden()
        assert watched.page.title() == "QMD embed service"
        well(watched)


def test_it_says_why_a_model_cannot_be_served(hub: FakeHub, tmp_path: Path, open_page: Open, axe: Path) -> None:
    environment = {**hub.environment(tmp_path / "home"), "EMBED_MODEL": "org/none", "RERANK_MODEL": ID}
    with ServiceProcess(environment, tmp_path / "log") as service:
        poll(lambda: service.health()[1].get("status") == "error", 120, "the error")
        cause = service.health()[1]["error"]
        watched = open_page(f"{service.url}/", bypass_csp=True, size="phone", scheme="dark")
        watched.page.locator("#numbers").wait_for()
        assert watched.text("#state") == "Error"
        assert watched.text("#sentence") == cause
        assert "EMBED_MODEL=org/none" in cause
        assert watched.page.title().startswith("Error")
        well(watched)
        watched.page.locator("#run").click()
        assert "org/none" in watched.wait_text("#search-error", "EMBED_MODEL")
        assert violations(watched, axe) == []
        fits(watched)
        watched.shot("error")
