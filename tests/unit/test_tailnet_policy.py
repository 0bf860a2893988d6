"""tailscale/policy.hujson: it parses, narrows, and has the names that the rest of the project has. Tailscale alone evaluates a policy."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "tailscale"
CAPABILITY, TAG = "example.com/cap/qmd", "tag:qmd-server"
GROUP = "group:qmd-users"


def standard(text: str) -> Any:
    """HuJSON is JSON with comments and trailing commas; here no string holds a comment's beginning or a comma before a bracket."""
    return json.loads(re.sub(r",(\s*[\]}])", r"\1", re.sub(r"^\s*//.*$", "", text, flags=re.MULTILINE)))


def with_services(text: str) -> str:
    """The grant that is commented out, in force."""
    return re.sub(r"^(\s*)// (\{|\t.*|\},)$", r"\1\2", text, flags=re.MULTILINE)


@pytest.fixture(params=["as it is", "with Services"])
def policy(request: pytest.FixtureRequest) -> dict[str, Any]:
    text = (FOLDER / "policy.hujson").read_text()
    return dict(standard(text if request.param == "as it is" else with_services(text)))


def test_only_the_group_only_https_only_the_servers(policy: dict[str, Any]) -> None:
    assert set(policy) == {"tagOwners", "groups", "grants", "autoApprovers", "tests"}
    assert "*" not in json.dumps(policy)
    for grant in policy["grants"]:
        assert grant["src"] == [GROUP]
        assert grant["ip"] == ["tcp:443"]
        assert set(grant["dst"]) <= {TAG, "svc:qmd-embed", "svc:qmd-vllm"}
    assert policy["grants"][0]["dst"] == [TAG], "the capability is looked up for the sidecar's own address"
    assert policy["grants"][0]["app"] == {CAPABILITY: [{}]}
    assert policy["tagOwners"] == {TAG: ["autogroup:admin"]}
    assert policy["autoApprovers"]["services"] == {"svc:qmd-embed": [TAG], "svc:qmd-vllm": [TAG]}


def test_the_services_grant_is_there_to_be_uncommented() -> None:
    grants = standard(with_services((FOLDER / "policy.hujson").read_text()))["grants"]
    assert grants[1]["dst"] == ["svc:qmd-embed", "svc:qmd-vllm"]


def test_somebody_of_the_group_gets_in_and_somebody_else_does_not(policy: dict[str, Any]) -> None:
    inside, outside, server = policy["tests"]
    assert inside["src"] in policy["groups"][GROUP]
    assert inside["accept"] == [f"{TAG}:443"]
    assert outside["src"] not in policy["groups"][GROUP]
    assert outside["deny"] == [f"{TAG}:443"]
    assert server["src"] == TAG


def test_the_serve_configs_pass_the_same_capability_on() -> None:
    configs = sorted(FOLDER.glob("*/serve.json"))
    assert len(configs) >= 3
    for config in configs:
        (site,) = json.loads(config.read_text())["Web"].values()
        assert [handler["AcceptAppCaps"] for handler in site["Handlers"].values()] == [[CAPABILITY]], config
