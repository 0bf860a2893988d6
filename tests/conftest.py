"""Fixtures that every folder shares."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.support.service import ServiceProcess, minilm_path


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--weights-dir", help="folder with real models for the tests marked `weights`: DIR/Qwen/Qwen3-Embedding-0.6B, …")


def pytest_configure(config: pytest.Config) -> None:
    # A shell's background job ignores SIGINT, and so would every process that a test starts and interrupts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def minilm() -> str:
    """Folder of all-MiniLM-L6-v2."""
    return minilm_path()


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """One running service on MiniLM in float32, reranking by cosine; shared by every test that does not break it."""
    with ServiceProcess({}, tmp_path_factory.mktemp("service") / "service.log") as process:
        process.wait_healthy()
        yield process
