"""Everything in this folder needs an NVIDIA GPU. It also runs where only torch, transformers, numpy and pytest are installed:

python -m pytest -c /dev/null --rootdir . --confcutdir tests/gpu tests/gpu
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def pytest_configure(config: pytest.Config) -> None:
    # Without the project's own configuration nothing else declares them.
    for marker in ("gpu: needs an NVIDIA GPU", "slow: takes more than about ten seconds", "timeout: seconds"):
        config.addinivalue_line("markers", marker)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("gpu")
            # What a card's own versions of libraries warn about is not what is tested.
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(scope="session", autouse=True)
def _card() -> None:
    from tests.support.gpu import need_card

    need_card()


@pytest.fixture(scope="module", autouse=True)
def _memory(_card: None) -> Iterator[None]:
    yield
    from tests.support.gpu import forget

    forget()
