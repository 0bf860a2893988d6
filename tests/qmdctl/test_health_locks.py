"""What `qmdctl health` says of a service that demands a key or a capability: a real service, and the checks on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qmdctl.commands.health import as_text, check_lock, check_service
from qmdctl.engine import Container
from qmdctl.probes import Link, Probe, try_link
from tests.qmdctl.containers import container
from tests.support.service import ServiceProcess


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """As on the box: this machine is not a sidecar."""
    folder = tmp_path_factory.mktemp("gated")
    (folder / "keys").write_text("the-key\n")
    environment = {
        "API_KEYS_FILE": str(folder / "keys"),
        "REQUIRE_CAPABILITY": "example.com/cap/qmd",
        "TRUSTED_SIDECARS": "ts-embed.invalid",
    }
    with ServiceProcess(environment, folder / "service.log") as process:
        process.wait_healthy()
        yield process


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    with ServiceProcess({}, tmp_path_factory.mktemp("opened") / "service.log") as process:
        process.wait_healthy()
        yield process


def running(process: ServiceProcess) -> Container:
    """What the engine would tell of a container with this process."""
    return container(health="healthy", ports={"8001/tcp": process.port})


def test_a_capability_that_is_demanded_is_a_lock_that_holds(gated: ServiceProcess) -> None:
    links = check_service("embed", running(gated), "the-key", 60)
    links.append(check_lock(running(gated), links, 60))
    assert [(link.name, link.payload()["state"]) for link in links] == [
        ("container", "ok"),
        ("port", "ok"),
        ("/health", "ok"),
        ("embedding", "locked"),
        ("rerank", "locked"),
        ("lock", "ok"),
    ]
    assert "REQUIRE_CAPABILITY" in links[3].detail
    text = as_text(links, None)
    assert "All links hold" not in text
    assert "qmdctl test" in text


def test_a_wrong_key_is_a_broken_link(gated: ServiceProcess) -> None:
    for key, words in (("another", "not one of its keys"), (None, "wants an API key")):
        probe = Probe("embed", gated.url, 60, key)
        with probe.client:
            link = try_link("embed", "embedding", probe.embedding)
        assert link.ok is False
        assert words in link.detail
        assert "qmdctl" in link.fix


def test_whether_the_lock_is_closed_is_tried(gated: ServiceProcess, opened: ServiceProcess) -> None:
    """.env may demand a key while the container is of before."""
    reached = [Link("embed", "port", True, 0.0)]
    assert check_lock(running(gated), reached, 60).detail == "401 for who has no key"
    link = check_lock(running(opened), reached, 60)
    assert link.ok is False
    assert "although .env demands one" in link.detail
    assert "qmdctl up" in link.fix
    assert check_lock(None, reached, 60).ok is None
    assert check_lock(running(gated), [Link("embed", "port", False, 0.0)], 60).seconds is None
