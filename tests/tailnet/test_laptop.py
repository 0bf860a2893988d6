"""qmdctl on a laptop of the tailnet: no project, no Docker, installed from its wheel."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.qmdctl_cli import Qmdctl
from tests.support.service import poll
from tests.support.tailnet import Tailnet
from tests.support.tailnet_project import HOSTS

pytestmark = [pytest.mark.docker, pytest.mark.tailnet, pytest.mark.slow, pytest.mark.timeout(900)]


def proof(tailnet: Tailnet, *arguments: str, status: int = 0) -> Any:
    done = tailnet.laptop("qmdctl", "test", "--json", *arguments)
    assert done.status == status, done.err + done.out
    return json.loads(done.out)


def test_it_finds_the_names_and_proves_every_link(tailnet: Tailnet, true_stack: Qmdctl) -> None:
    found = proof(tailnet)
    assert found["ok"], found
    assert found["tailscale"]["suffix"] == tailnet.suffix
    assert {tailnet.url(host).rstrip("/") for host in HOSTS} <= {str(value) for value in found["names"].values()}
    proved = {service: {link["link"] for link in found["links"] if link["service"] == service} for service in ("embed", "vllm")}
    assert {link["state"] for link in found["links"]} == {"ok"}
    common = {"name", "port 443", "certificate", "/health", "closed ports", "path"}
    assert proved == {"embed": {*common, "embedding", "rerank"}, "vllm": {*common, "completion", "chat"}}


def test_given_names_are_proved_as_well(tailnet: Tailnet, true_stack: Qmdctl) -> None:
    embed, vllm = (tailnet.url(host).rstrip("/") for host in HOSTS)
    assert proof(tailnet, "--embed-url", embed, "--generate-url", vllm)["ok"]


def test_the_first_broken_link_is_named_where_the_policy_bars_the_laptop(tailnet: Tailnet, true_stack: Qmdctl) -> None:
    tailnet.jail(HOSTS[0], "laptop")
    try:
        poll(lambda: "Timeout" in tailnet.ask(tailnet.url(HOSTS[0], "/health"), timeout=2).get("error", ""), 30, "the refusal")
        found = proof(tailnet, "--timeout", "3", status=1)
        assert (found["first_broken"]["service"], found["first_broken"]["link"]) == ("embed", "port 443"), found
    finally:
        tailnet.jail(HOSTS[0], "laptop", jailed=False)
    poll(lambda: tailnet.ask(tailnet.url(HOSTS[0], "/health"), timeout=5).get("status") == 200, 30, "the laptop being let in")


@pytest.mark.parametrize("client", ["seed", "yudshj", "picassio", "unithejerk", "jawk", "qmdr", "lotl"])
def test_a_client_s_configuration_has_the_true_names(tailnet: Tailnet, true_stack: Qmdctl, client: str) -> None:
    done = tailnet.laptop("qmdctl", "client", "--for", client)
    assert done.status == 0, done.err
    assert f"{HOSTS[0]}.{tailnet.suffix}" in done.out
