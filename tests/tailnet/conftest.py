"""What the tests of the tailnet share: one tailnet, the true stack on it, and beside it a stack whose services are FAKE.

The modules run in an order of their own: what leaves the true stack alone comes while its connections have to be idle.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stack.conftest import expected
from tests.support.qmdctl_cli import Qmdctl
from tests.support.tailnet import Tailnet
from tests.support.tailnet_images import build_images, need_tailnet
from tests.support.tailnet_project import make_fake_project, make_true_project, remove

__all__ = ["expected"]
HERE = Path(__file__).parent
ORDER = [
    "policy",
    "programs",
    "requests",
    "laptop",
    "serve",
    "logins",
    "services",
    "idle",
    "recovery",
    "state",
    "capability",
    "metrics",
    "https_off",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        name = item.path.stem.removeprefix("test_")
        return ORDER.index(name) if item.path.parent == HERE and name in ORDER else len(ORDER)

    ours = [index for index, item in enumerate(items) if item.path.parent == HERE]
    for index, item in zip(ours, sorted((items[index] for index in ours), key=place), strict=True):
        items[index] = item


@pytest.fixture(scope="package")
def tailnet() -> Iterator[Tailnet]:
    need_tailnet()
    build_images()
    with Tailnet() as running:
        yield running


@pytest.fixture(scope="package")
def true_stack(tailnet: Tailnet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Qmdctl]:
    """The embed service, vLLM and both sidecars, up."""
    home = tmp_path_factory.mktemp("true")
    qmdctl = make_true_project(tailnet, home / "project", home)
    try:
        done = qmdctl.run("up", "--skip-checks", "--json", seconds=800)
        assert done.status == 0, done.err
        yield qmdctl
    finally:
        remove(qmdctl)


@pytest.fixture(scope="module")
def fake_stack(tailnet: Tailnet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Qmdctl]:
    """The same sidecars around two FAKE services, up."""
    home = tmp_path_factory.mktemp("fake")
    qmdctl = make_fake_project(tailnet, home / "project", home)
    try:
        done = qmdctl.run("up", "--skip-checks", "--json", seconds=200)
        assert done.status == 0, done.err
        yield qmdctl
    finally:
        remove(qmdctl)
