"""`tailscale/policy.hujson` as Tailscale's own parser reads it: what it grants, and what it must not. Its evaluation is Tailscale's."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from tests.support.service import ROOT
from tests.support.tailnet import CAPABILITY
from tests.support.tailnet_images import PROGRAMS, need_programs

pytestmark = pytest.mark.tailnet
TAG = "tag:qmd-server"


def standard(text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(PROGRAMS / "hujson")], input=text, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def policy() -> dict[str, Any]:
    need_programs()
    done = standard((ROOT / "tailscale/policy.hujson").read_text(encoding="utf-8"))
    assert done.returncode == 0, done.stderr
    data: dict[str, Any] = json.loads(done.stdout)
    return data


def test_tailscale_s_parser_refuses_what_is_not_hujson() -> None:
    need_programs()
    assert json.loads(standard('{"a": 1, // comment\n}').stdout) == {"a": 1}
    assert standard('{"a": }').returncode != 0


def test_a_group_alone_reaches_the_servers_on_https_with_the_capability(policy: dict[str, Any]) -> None:
    assert policy["grants"]
    for grant in policy["grants"]:
        assert all(source.startswith("group:") for source in grant["src"]), grant
        assert all(source in policy["groups"] for source in grant["src"]), grant
        assert all(target == TAG or target.startswith("svc:qmd-") for target in grant["dst"]), grant
        assert grant["ip"] == ["tcp:443"], grant
    to_nodes = [grant for grant in policy["grants"] if TAG in grant["dst"]]
    assert to_nodes
    assert all(grant["app"].keys() == {CAPABILITY} and grant["app"][CAPABILITY] for grant in to_nodes)


def test_the_tag_has_an_owner(policy: dict[str, Any]) -> None:
    assert policy["tagOwners"][TAG]


def test_nothing_is_open_to_everybody(policy: dict[str, Any]) -> None:
    def strings(node: object) -> list[str]:
        if isinstance(node, dict):
            return [text for key, value in node.items() for text in (*strings(key), *strings(value))]
        return [text for one in node for text in strings(one)] if isinstance(node, list) else [str(node)]

    assert not policy.get("acls")
    for grant in policy["grants"]:
        assert not {"*", "autogroup:internet", "autogroup:danger-all"} & {*grant["src"], *grant["dst"]}
        assert not any("autogroup:" in source for source in grant["src"]), grant
    assert "funnel" not in strings(policy.get("nodeAttrs", []))


def test_its_own_tests_deny_the_services_ports(policy: dict[str, Any]) -> None:
    """Tailscale refuses to save a policy whose tests fail."""
    tests = policy["tests"]
    assert any(f"{TAG}:443" in test.get("accept", []) for test in tests)
    assert any(f"{TAG}:443" in test.get("deny", []) for test in tests), "somebody outside of the group"
    assert any(f"{TAG}:443" in test.get("accept", []) and f"{TAG}:8001" in test.get("deny", []) for test in tests), "no more than 443"
