"""What a sidecar says of itself becomes a phase; serve configs and Services. The outputs are Tailscale 1.102.3's on the tests' tailnet."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from qmdctl import env_file
from qmdctl.errors import ConfigurationError
from qmdctl.startup.sidecar_phases import renamed_text, sidecar_phase
from qmdctl.tailnet import serve_config, services
from qmdctl.tailnet.certificate import Certificate
from qmdctl.tailnet.login import login_text
from qmdctl.tailnet.sidecar import MARK, Sidecar, parse_sidecar
from tests.qmdctl.containers import container
from tests.qmdctl.projects import settings_of
from tests.support.service import ROOT

NAME = "qmd-embed.tail0001.ts.net"
SERVE = serve_config.expected(serve_config.read(ROOT / "tailscale/embed/serve.json"), NAME)
WELL = Sidecar(
    "ts-embed",
    state="Running",
    wanted="qmd-embed",
    name=NAME,
    suffix="tail0001.ts.net",
    cert_domains=(NAME,),
    serve=SERVE,
    serve_path="/serve/embed/serve.json",
    certificate=Certificate((NAME,), datetime.now(UTC) + timedelta(90)),
)


@pytest.mark.parametrize(
    ("change", "phase", "detail"),
    [
        ({}, "ready", ""),
        ({"state": ""}, "connecting", ""),
        ({"state": "NeedsLogin", "auth_url": "https://login/a/1"}, "login", "https://login/a/1"),
        (
            {"state": "NeedsLogin", "health": ("You are logged out. The last login error was: fetch control key: refused",)},
            "connecting",
            "fetch control key: refused",
        ),
        ({"state": "NeedsMachineAuth"}, "approval", "login.tailscale.com/admin/machines"),
        ({"state": "Stopped"}, "error", "switched off"),
        ({"state": "NoState", "health": ("The last login error was: fetch control key: no route",)}, "connecting", "no route"),
        ({"state": "NeedsLogin", "expired": True}, "connecting", "expired"),
        ({"state": "NeedsLogin", "expired": True, "auth_url": "https://login/a/2"}, "login", "https://login/a/2"),
        (
            {"cert_domains": (), "certificate": None, "serve": {}},
            "error",
            "HTTPS Certificates in the admin console (login.tailscale.com/admin/dns)",
        ),
        ({"cert_domains": (), "control_url": "https://mine"}, "error", "your control server (https://mine)"),
        ({"serve": {}}, "applying", ""),
        ({"certificate": None, "health": (f"Fetching TLS certificate via ACME for: {NAME}",)}, "certificate", "ACME"),
        ({"certificate": Certificate((NAME,), datetime.now(UTC) - timedelta(1))}, "certificate", ""),
        ({"serve_path": "/serve/services/embed/serve.json"}, "error", "cannot be read"),
    ],
)
def test_the_phase_of_a_sidecar(change: dict[str, Any], phase: str, detail: str) -> None:
    found = sidecar_phase(replace(WELL, **change), ROOT)
    assert found.name == phase
    assert detail in found.detail


def test_a_name_that_was_taken() -> None:
    assert not WELL.renamed
    other = replace(WELL, name="qmd-embed-1.tail0001.ts.net")
    assert other.renamed
    cause, fix = renamed_text(other)
    assert "another machine called qmd-embed" in cause
    assert "admin/machines" in fix
    cause, fix = renamed_text(replace(WELL, name="notes.tail0001.ts.net"))
    assert "another machine" not in cause, "its owner may have renamed it"
    assert fix.startswith("set EMBED_HOSTNAME=notes in .env")


def test_output_that_ends_early_is_a_sidecar_without_a_state() -> None:
    one = container("ts-embed", environment={"TS_HOSTNAME": "qmd-embed"})
    for text in ("", f"{MARK} status\n", f"{MARK} status\n{{", "OCI runtime exec failed"):
        assert parse_sidecar(one, text).state == ""
    status = {"BackendState": "Running", "CertDomains": None, "Health": None, "Self": {"DNSName": f"{NAME}.", "Tags": None, "CapMap": None}}
    found = parse_sidecar(one, f"{MARK} status\n{json.dumps(status)}\n{MARK} serve\n\n{MARK} prefs\nnot json\n{MARK} certificates\n")
    assert (found.running, found.name, found.cert_domain, found.renamed) == (True, NAME, "no-https", False)


def test_the_login_has_its_link_on_a_line_and_a_code() -> None:
    text = login_text("ts-vllm", "https://login.tailscale.com/a/0123456789abcdef")
    assert "\n  https://login.tailscale.com/a/0123456789abcdef\n" in text
    assert "█" in text


@pytest.mark.parametrize(
    ("values", "embed", "vllm"),
    [
        ({}, "embed", "vllm"),
        ({"API_KEYS_FILE": "./secrets/api_keys"}, "embed", "vllm-through-embed"),
        ({"REQUIRE_CAPABILITY": "example.com/cap/qmd"}, "embed", "vllm-through-embed"),
        ({"API_KEYS_FILE": "./k", "REQUIRE_CAPABILITY": "a/b"}, "embed", "vllm-through-embed"),
        ({"VLLM_SERVE": "vllm-through-embed"}, "embed", "vllm-through-embed"),
        ({"TAILNET_SERVICE": "1", "API_KEYS_FILE": "./k"}, "services/embed", "services/vllm-through-embed"),
    ],
)
def test_which_serve_config_compose_chooses(tmp_path: Path, values: dict[str, str], embed: str, vllm: str) -> None:
    settings = settings_of(tmp_path, values)
    for sidecar, folder in (("ts-embed", embed), ("ts-vllm", vllm)):
        path = serve_config.configured_path(settings, tmp_path, sidecar)
        assert serve_config.on_disk(tmp_path, path) == tmp_path / "tailscale" / folder / "serve.json"


def test_the_committed_configs_lead_where_they_say_and_have_no_funnel() -> None:
    for folder, target in (("embed", "http://embed:8001"), ("vllm", "http://vllm:8000"), ("vllm-through-embed", "http://embed:8001")):
        config = serve_config.read(ROOT / "tailscale" / folder / "serve.json")
        assert serve_config.targets(config) == [target]
        assert serve_config.capabilities(config) == {"example.com/cap/qmd"}
        assert serve_config.funnel(config) == []


def test_a_service_stands_beside_the_node_s_own_config(tmp_path: Path) -> None:
    own = serve_config.read(ROOT / "tailscale/embed/serve.json")
    whole = services.render(own, "qmd-embed", "tail0001.ts.net")
    assert {key: whole[key] for key in own} == own
    (service,) = whole["Services"].items()
    assert service[0] == "svc:qmd-embed"
    assert list(service[1]["Web"]) == ["qmd-embed.tail0001.ts.net:443"]
    assert serve_config.targets(whole) == ["http://embed:8001"]
    services.write(tmp_path / "new/serve.json", whole)
    assert serve_config.read(tmp_path / "new/serve.json") == whole
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["serve.json"]


def test_nodes_get_names_of_their_own_once(tmp_path: Path) -> None:
    file = env_file.parse("EMBED_HOSTNAME=mine\n# VLLM_HOSTNAME=qmd-vllm\n", ".env")
    assert services.name_nodes(file) == ["VLLM_HOSTNAME"]
    assert file.values["EMBED_HOSTNAME"] == "mine"
    assert file.values["VLLM_HOSTNAME"].startswith("qmd-vllm-")
    assert services.name_nodes(file) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON"),
        ("// a comment\n{}", "is not JSON"),
        ('{"version": "0.0.1", "services": {}}', "is not a serve config"),
        ('{"Web": {"$${TS_CERT_DOMAIN}:443": {}}}', "is not a serve config"),
        ("[]", "is not a serve config"),
    ],
)
def test_what_containerboot_would_stumble_over_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "serve.json"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=said):
        serve_config.read(path)


def test_a_rendered_service_follows_its_source(tmp_path: Path) -> None:
    """A capability that changes in the nodes' own configs, as docs/tailnet-policy.md says, reaches the Services' ones at the next up."""
    for folder in services.FOLDERS:
        own = serve_config.read(ROOT / "tailscale" / folder / "serve.json")
        services.write(tmp_path / "tailscale" / folder / "serve.json", own)
    services.prepare(tmp_path)
    rendered = tmp_path / "tailscale/services/vllm/serve.json"
    own = serve_config.read(tmp_path / "tailscale/vllm/serve.json")
    assert serve_config.read(rendered) == own, "no suffix is known yet"
    services.write(rendered, services.render(own, "qmd-vllm", "tail0001.ts.net"))
    changed = json.loads(json.dumps(own).replace("example.com/cap/qmd", "mine.example/cap/qmd"))
    services.write(tmp_path / "tailscale/vllm/serve.json", changed)
    services.prepare(tmp_path)
    assert serve_config.read(rendered) == services.render(changed, "qmd-vllm", "tail0001.ts.net")
    assert serve_config.source(tmp_path, "/serve/services/vllm/serve.json") == tmp_path / "tailscale/vllm/serve.json"
