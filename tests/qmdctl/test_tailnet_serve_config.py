"""Serve configs: which one a sidecar is given, whether it is the one in force, where it leads, and Funnel in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qmdctl.errors import ConfigurationError
from qmdctl.tailnet import funnel, serve_config
from tests.qmdctl.tailnets import SUFFIX, serve_of, tailnet_settings
from tests.support.service import ROOT


@pytest.mark.parametrize(
    ("service", "values", "place", "file"),
    [
        ("ts-embed", {}, "/serve/embed/serve.json", "embed"),
        ("ts-vllm", {}, "/serve/vllm/serve.json", "vllm"),
        ("ts-vllm", {"VLLM_SERVE": "vllm-through-embed"}, "/serve/vllm-through-embed/serve.json", "vllm-through-embed"),
        ("ts-vllm", {"API_KEYS_FILE": "./k"}, "/serve/vllm/../vllm-through-embed/serve.json", "vllm-through-embed"),
        ("ts-vllm", {"REQUIRE_CAPABILITY": "c"}, "/serve/vllm/../vllm-through-embed/serve.json", "vllm-through-embed"),
        ("ts-embed", {"API_KEYS_FILE": "./k"}, "/serve/embed/serve.json", "embed"),
        ("ts-embed", {"TAILNET_SERVICE": "1"}, "/serve/services/embed/serve.json", "services/embed"),
    ],
)
def test_which_file_the_settings_choose(tmp_path: Path, service: str, values: dict[str, str], place: str, file: str) -> None:
    found = serve_config.configured_path(tailnet_settings(tmp_path, **values), tmp_path, service)
    assert found == place
    assert serve_config.on_disk(tmp_path, found) == tmp_path / f"tailscale/{file}/serve.json"


@pytest.mark.parametrize("name", ["embed", "vllm", "vllm-through-embed"])
def test_the_files_of_the_project(name: str) -> None:
    config = serve_config.read(ROOT / f"tailscale/{name}/serve.json")
    assert serve_config.targets(config) == ["http://vllm:8000" if name == "vllm" else "http://embed:8001"]
    assert serve_config.capabilities(config) == {"example.com/cap/qmd"}
    assert serve_config.funnel(config) == []
    assert list(serve_config.expected(config, f"x.{SUFFIX}")["Web"]) == [f"x.{SUFFIX}:443"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"TCP": {}} // a comment', "is not JSON"),
        ('{"TCP": {},}', "is not JSON"),
        ('{"version": "0.0.1", "services": {}}', "not a serve config"),
        ('{"Web": {"$${TS_CERT_DOMAIN}:443": {}}}', "not a serve config"),
        ("[]", "not a serve config"),
        ("", "is not JSON"),
    ],
)
def test_what_the_sidecar_would_stumble_over(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "serve.json").write_text(text)
    with pytest.raises(ConfigurationError, match=why) as error:
        serve_config.read(tmp_path / "serve.json")
    assert "git checkout tailscale" in error.value.fix
    with pytest.raises(ConfigurationError, match="cannot be read"):
        serve_config.read(tmp_path / "absent.json")


def test_what_is_empty_or_false_is_left_out() -> None:
    whole = serve_of("embed", "qmd-embed")
    assert serve_config.same(whole, {**whole, "AllowFunnel": {}, "Services": None, "Foreground": {}})
    assert serve_config.same({"TCP": {"443": {"HTTPS": True, "HTTP": False}}}, {"TCP": {"443": {"HTTPS": True}}})
    assert serve_config.same({}, {"TCP": {}, "Web": {}})
    assert not serve_config.same(whole, serve_of("vllm", "qmd-embed"))
    assert not serve_config.same(whole, {})


HANDLER = {"Proxy": "http://embed:8001", "AcceptAppCaps": ["a", "b"]}


def test_capabilities_that_every_handler_passes_on() -> None:
    config: dict[str, Any] = {"Web": {"x:443": {"Handlers": {"/": HANDLER, "/v1": {**HANDLER, "AcceptAppCaps": ["b"]}}}}}
    assert serve_config.capabilities(config) == {"b"}
    assert serve_config.targets(config) == ["http://embed:8001"]
    config["Services"] = {"svc:qmd-embed": {"Web": {"y:443": {"Handlers": {"/": {"Proxy": "http://vllm:8000"}}}}}}
    assert serve_config.capabilities(config) == set()
    assert serve_config.targets(config) == ["http://embed:8001", "http://vllm:8000"]
    assert serve_config.capabilities({}) == set() and serve_config.targets({"Web": {"x:443": {}}}) == []


@pytest.mark.parametrize(
    ("config", "places"),
    [
        ({}, []),
        ({"AllowFunnel": {}}, []),
        ({"AllowFunnel": {"x:443": False}}, ["AllowFunnel"]),
        ({"allowfunnel": {"x:443": True}}, ["allowfunnel"]),  # Go reads keys in either case
        ({"Foreground": {"s": {"AllowFunnel": {"x:443": True}}}}, ["Foreground.s.AllowFunnel"]),
        ({"Services": {"svc:a": {"AllowFunnel": {"x:443": True}}}}, ["Services.svc:a.AllowFunnel"]),
        ([], []),
    ],
)
def test_where_funnel_stands(config: object, places: list[str]) -> None:
    assert serve_config.funnel(config) == places


@pytest.mark.parametrize(
    ("policy", "speaks"),
    [
        ('{"nodeAttrs": [{"target": ["autogroup:member"], "attr": ["funnel"]}]}', True),
        ('{"nodeAttrs": [{"attr": ["Funnel"]}]} // https://example.com', True),
        ('// "funnel" is not here\n{"grants": []}', False),
        ('/* never "funnel" */ {"grants": []}', False),
        ('{"a": "https://example.com/x", "attr": ["funnel"]}', True),
        ('{"a": "http://funnel", "b": "the funnel"}', False),
        ('{"a": "say \\"funnel\\"", "b": 1}', False),
        ("", False),
    ],
)
def test_funnel_in_a_policy(policy: str, speaks: bool) -> None:
    assert funnel.speaks_of_funnel(policy) is speaks


def test_a_damaged_file_has_no_funnel(tmp_path: Path) -> None:
    (tmp_path / "serve.json").write_text("{")
    assert funnel.in_file(tmp_path / "serve.json") == funnel.in_file(tmp_path / "absent.json") == funnel.in_policy_file(tmp_path) == []
    (tmp_path / "serve.json").write_text(json.dumps({"AllowFunnel": {"x:443": False}}))
    ((what, fix),) = funnel.in_file(tmp_path / "serve.json")
    assert "AllowFunnel" in what and "even where it is false" in fix
