"""What `qmdctl down` keeps: names, addresses, certificates. The second start has a capability set, for test_capability.py."""

from __future__ import annotations

import pytest

from tests.support.qmdctl_cli import Qmdctl, docker
from tests.support.tailnet import CAPABILITY, Tailnet
from tests.support.tailnet_project import HOSTS, give_key

pytestmark = [pytest.mark.docker, pytest.mark.tailnet, pytest.mark.slow, pytest.mark.timeout(900)]


def test_down_and_up_keep_names_and_certificates(tailnet: Tailnet, true_stack: Qmdctl) -> None:
    before = {host: (tailnet.node(host), tailnet.certificate(host)) for host in HOSTS}
    orders = tailnet.seen()["orders"]
    assert true_stack.run("down", seconds=120).status == 0
    assert not docker("ps", "--all", "--quiet", "--filter", f"label=com.docker.compose.project={true_stack.value('COMPOSE_PROJECT_NAME')}")
    give_key(true_stack, "")  # which a node that has its login does not miss
    true_stack.set(REQUIRE_CAPABILITY=CAPABILITY)
    done = true_stack.run("up", "--skip-checks", "--json", seconds=800)
    assert done.status == 0, done.err
    for host, (node, certificate) in before.items():
        now = tailnet.node(host)
        assert [now[key] for key in ("ID", "Name", "Addresses", "Key")] == [node[key] for key in ("ID", "Name", "Addresses", "Key")]
        assert tailnet.certificate(host) == certificate
    assert tailnet.seen()["orders"] == orders
