"""A tailnet on which HTTPS certificates are off: the sidecars look healthy and serve nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.qmdctl_cli import Qmdctl
from tests.support.service import poll
from tests.support.tailnet import Tailnet
from tests.support.tailnet_project import FAKE_HOSTS, make_fake_project, remove

pytestmark = [pytest.mark.docker, pytest.mark.tailnet, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def project(tailnet: Tailnet, tmp_path: Path) -> Iterator[Qmdctl]:
    tailnet.set(https=False)
    qmdctl = make_fake_project(tailnet, tmp_path / "project", tmp_path)
    yield qmdctl
    remove(qmdctl)
    tailnet.reset()


def test_up_says_that_https_is_off_and_where_it_is_turned_on(tailnet: Tailnet, project: Qmdctl) -> None:
    done = project.run("up", "--skip-checks", seconds=120)
    assert done.status == 1, done.err
    assert "MagicDNS and HTTPS Certificates" in done.err
    assert "https://control" in done.err
    assert all("error" in tailnet.ask(tailnet.url(host), timeout=3) for host in FAKE_HOSTS)
    # Turned on, it takes effect by itself: the serve configs name ${TS_CERT_DOMAIN}.
    tailnet.set(https=True)
    for host in FAKE_HOSTS:
        poll(lambda host=host: tailnet.ask(tailnet.url(host), timeout=5).get("status") == 200, 30, f"{host} with a certificate")
    again = project.run("up", "--skip-checks", seconds=60)
    assert again.status == 0, again.err
