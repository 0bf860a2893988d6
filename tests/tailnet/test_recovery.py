"""What is killed or restarted comes back under the same name, and from the first good answer on none fails."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from tests.support.qmdctl_cli import Qmdctl, docker
from tests.support.service import poll
from tests.support.tailnet import Tailnet
from tests.support.tailnet_project import HOSTS
from tests.support.tailnet_wire import process_of, processes

pytestmark = [pytest.mark.docker, pytest.mark.tailnet, pytest.mark.slow, pytest.mark.timeout(900)]


def kill(container: str) -> None:
    """As the kernel's out-of-memory killer does. `docker kill` would count as a stop by hand."""
    os.kill(process_of(container), signal.SIGKILL)


def kill_tailscaled(container: str) -> None:
    (process,) = processes(container, "tailscaled")
    os.kill(process, signal.SIGKILL)


def restart(container: str) -> None:
    docker("restart", container)


@pytest.mark.parametrize(
    ("harm", "container", "host"),
    [
        (restart, "qmd-ts-embed", "qmd-embed"),
        (kill, "qmd-ts-embed", "qmd-embed"),
        (kill_tailscaled, "qmd-ts-vllm", "qmd-vllm"),
        (restart, "qmd-embed", "qmd-embed"),
        (kill, "qmd-embed", "qmd-embed"),
        (kill, "qmd-vllm", "qmd-vllm"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_no_request_fails_once_it_is_back(
    tailnet: Tailnet, true_stack: Qmdctl, harm: Callable[[str], None], container: str, host: str
) -> None:
    names = {name: (tailnet.node(name)["Name"], tailnet.node(name)["Addresses"]) for name in HOSTS}
    orders = tailnet.seen()["orders"]
    started = docker("inspect", "--format", "{{.State.StartedAt}}", container)
    harm(container)
    poll(lambda: docker("inspect", "--format", "{{.State.StartedAt}}", container) != started, 60, f"another start of {container}")
    poll(lambda: tailnet.ask(tailnet.url(host, "/health"), timeout=5).get("status") == 200, 200, f"an answer of {host}", 0.3)
    counts = tailnet.ask(tailnet.url(host, "/v1/models"), repeat=3)["counts"]
    assert counts.keys() == {"200"}, counts
    assert {name: (tailnet.node(name)["Name"], tailnet.node(name)["Addresses"]) for name in HOSTS} == names
    assert tailnet.seen()["orders"] == orders  # the certificate was kept
