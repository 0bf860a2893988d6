"""Each known symptom of a sidecar is found from its evidence.

Recorded on the tests' own tailnet with Tailscale 1.102.3: the lines about HTTPS that is off and about the login server. Lines of others'
threads: those about keys, tags, rate limits and tun. Made by hand: the sidecars, what Docker says of containers, and the other lines.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from qmdctl.checks import Finding
from qmdctl.checks.tailnet_evidence import Evidence, gather
from qmdctl.checks.tailnet_running import check, judge
from qmdctl.engine import Container, Engine
from qmdctl.probes import Broken
from qmdctl.tailnet.certificate import Certificate
from qmdctl.tailnet.sidecar import MARK
from tests.qmdctl.containers import container
from tests.qmdctl.contexts import FakeEngine, machine
from tests.qmdctl.tailnets import SUFFIX, in_days, serve_of, sidecar, sidecar_container, tailnet_settings

EMBED = container("embed", health="healthy", started_at=datetime(2026, 11, 25, 12, 0, tzinfo=UTC))
VLLM = container("vllm", health="healthy", environment={"VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "120"})
MOUNTS = [{"Destination": "/var/lib/tailscale"}, {"Destination": "/serve"}]


def inspected(service: str = "ts-embed", backend: str = "embed", **changes: Any) -> dict[str, Any]:
    """`docker inspect` of both, of the parts that are looked at."""
    own = {"Mounts": MOUNTS, "NetworkSettings": {"Networks": {"qmd_edge-embed": {}, "qmd_tailnet": {}}}, "Config": {"StopTimeout": 40}}
    networks = {"qmd_edge-embed": {}, "qmd_backend": {}, "qmd_egress": {}}
    other = {"HostConfig": {"NetworkMode": "qmd_edge-embed"}, "NetworkSettings": {"Networks": networks}}
    return {service: {**own, **changes.get("own", {})}, backend: {**other, **changes.get("other", {})}}


def evidence(folder: Path, service: str = "ts-embed", *, settings: dict[str, str] | None = None, **fields: Any) -> Evidence:
    """Of a sidecar that is well; `fields` of the evidence, of its Sidecar (`node`) and of its container (`box`) make it otherwise."""
    node, box = fields.pop("node", {}), fields.pop("box", {})
    well: dict[str, Any] = {
        "settings": tailnet_settings(folder, **(settings or {})),
        "container": sidecar_container(service, **box),
        "sidecar": sidecar(service, **node),
        "backends": (EMBED,) if service == "ts-embed" else (VLLM,),
        "inspected": inspected(service, "embed" if service == "ts-embed" else "vllm"),
    }
    return Evidence(**{**well, **fields})


def test_one_that_is_well(tmp_path: Path) -> None:
    for service in ("ts-embed", "ts-vllm"):
        (finding,) = judge(evidence(tmp_path, service))
        assert (finding.level, finding.what) == ("ok", f"{service}: https://qmd-{service[3:]}.{SUFFIX}")


OUT = {"state": "NeedsLogin", "serve": {}, "cert_domains": (), "certificate": None, "name": "", "online": False}
LOOP: dict[str, Any] = {"state": "restarting", "health": "", "exit_code": 1, "restart_count": 7}
NO_HTTPS = {"cert_domains": (), "serve": {}, "certificate": None}
SHARED = "svc:qmd-embed"
SERVICE = {
    "serve": {**serve_of("embed", "qmd-embed"), "Services": {SHARED: {"TCP": {"443": {"HTTPS": True}}}}},
    "serve_path": "/serve/services/embed/serve.json",
}
HTTPS_LINES = (  # recorded
    "boot: 2026/11/25 21:58:55 serve proxy: this node is configured as a proxy that exposes an HTTPS endpoint to tailnet,",
    "\t\t(perhaps a Kubernetes operator Ingress proxy) but it is not able to issue TLS certs, so this will likely not work.",
)
CONTROL_LINE = (  # recorded
    '2026/11/25 21:58:53 Received error: fetch control key: Get "https://control/key?v=142": '
    'failed to resolve "control": no DNS fallback candidates remain for "control"'
)

# number, service, what differs, level, what, fix
SYMPTOMS: list[tuple[int, str, dict[str, Any], str, str, str]] = [
    (1, "ts-embed", {"node": NO_HTTPS, "log": HTTPS_LINES}, "failure", "gives no certificates", "admin/dns"),
    (2, "ts-embed", {"inspected": inspected(other={"HostConfig": {"NetworkMode": "container:0a1b"}})}, "failure",
     "embed lives in the network of another container", "--force-recreate embed"),
    (2, "ts-embed", {"inspected": inspected(other={"NetworkSettings": {"Networks": {"other": {}}}})}, "failure",
     "no network in common with embed", "networks of compose.yaml"),
    (2, "ts-embed", {"inspected": inspected(other={"NetworkSettings": {"Networks": {"qmd_edge-embed": {}, "qmd_tailnet": {}}}})}, "warning",
     "several networks in common with embed: qmd_edge-embed, qmd_tailnet", "networks of compose.yaml"),
    (3, "ts-embed", {"unreached": Broken("http://embed:8001 refuses the connection", "qmdctl status")}, "failure", "refuses", "status"),
    (3, "ts-embed", {"log": ("2026/11/25 12:30:00 http: proxy error: dial tcp 172.18.0.2:8001: connect: connection refused",)}, "warning",
     "did not reach embed for a while", "qmdctl logs embed"),
    (3, "ts-vllm", {"log": ("2026/11/25 12:30:00 http: proxy error: dial tcp: lookup vllm on 127.0.0.11:53: no such host",)}, "warning",
     "did not reach vllm for a while", "qmdctl logs vllm"),
    (4, "ts-embed", {"node": OUT, "box": LOOP, "log": ("backend error: invalid key: API key kAbC not valid",)}, "failure",
     "refuses the auth key", "reusable key"),
    (4, "ts-embed", {"node": OUT, "other": "ts-vllm", "log": ("backend error: invalid key: API key kAbC not valid",)}, "failure",
     "one-off key, and ts-vllm has used it up", "reusable key"),
    (4, "ts-embed", {"node": {**OUT, "health": ("The last login error was: invalid key: API key does not exist",)}}, "failure",
     "refuses the auth key", "reusable key"),
    (4, "ts-embed", {"node": OUT, "log": ("2025/09/06 10:00:00 Received error: invalid key: API key does not exist",)}, "failure",
     "refuses the auth key", "reusable key"),
    (4, "ts-embed", {"box": {"environment": {"TS_AUTH_ONCE": "false"}}}, "warning", "TS_AUTH_ONCE is not true", "compose.yaml"),
    (5, "ts-embed", {"node": {"name": f"qmd-embed-1.{SUFFIX}"}}, "failure", "another machine called qmd-embed", "keep the volume"),
    (5, "ts-embed", {"inspected": inspected(own={"Mounts": [{"Destination": "/serve"}]})}, "failure", "not kept in a volume", "mount"),
    (5, "ts-embed", {"box": {"environment": {"TS_STATE_DIR": ""}}}, "failure", "not kept in a volume", "mount"),
    (6, "ts-embed", {"node": OUT, "box": LOOP, "log": ("backend error: requested tags [tag:a tag:b] are invalid or not permitted",)},
     "failure", "the tags tag:a tag:b", "tagOwners"),
    (6, "ts-embed", {"node": OUT, "box": LOOP, "log": ("oauth authkeys require --advertise-tags",)}, "failure", "TS_TAGS is", "TS_TAGS"),
    (7, "ts-embed", {"node": {"certificate": None}}, "warning", "no certificate yet", "keep the volume"),
    (7, "ts-embed", {"node": {"certificate": None}, "log": ("acme: 429 urn:ietf:params:acme:error:rateLimited: too many certificates",)},
     "failure", "no certificate yet", "keep the volume"),
    (7, "ts-embed", {"node": {"certificate": None}, "log": ('cert: getCertPEM: SetDNS: set-dns response: 500 Internal Server Error',)},
     "failure", "no certificate yet", "every hour"),
    (7, "ts-embed", {"node": {"certificate": None}, "box": {"image": "tailscale/tailscale:v1.98.4"}}, "warning", "no certificate yet",
     "tailscale cert --cert-file=-"),
    (7, "ts-embed", {"node": {"certificate": Certificate((f"qmd-embed.{SUFFIX}",), in_days(-1))}}, "warning", "certificate is over", "log"),
    (8, "ts-embed", {"node": OUT, "box": {**LOOP, "environment": {"TS_USERSPACE": "false"}}}, "failure", "TS_USERSPACE is", "override"),
    (8, "ts-embed", {"node": OUT, "box": LOOP, "log": ("CreateTUN failed; /dev/net/tun: operation not permitted",)}, "failure",
     "TS_USERSPACE=false", "override"),
    (9, "ts-embed", {"node": SERVICE}, "failure", f"{SHARED} is not advertised", f"tailscale serve advertise {SHARED}"),
    (9, "ts-embed", {"node": {**SERVICE, "tags": ()}}, "failure", "is not offered", "TS_TAGS"),
    (9, "ts-embed", {"node": {**SERVICE, "advertised": (SHARED,)}}, "failure", "has not approved this host", "autoApprovers"),
    (9, "ts-embed", {"node": {**SERVICE, "advertised": (SHARED,), "capabilities": frozenset({"service-host"})},
                     "inspected": inspected(own={"Config": {}})}, "warning", "killed 10 s after a stop", "stop_grace_period"),
    (10, "ts-embed", {"peers": ({"HostName": "laptop", "Active": True, "CurAddr": "", "Relay": "fra", "OS": "macOS"},)}, "warning",
     "through a relay with laptop (relay fra)", "41651/udp"),
    (10, "ts-vllm", {"box": {"ports": {}}}, "warning", "UDP port 41652 is not published", "VLLM_UDP_PORT"),
    (11, "ts-embed", {"inspected": inspected(own={"Mounts": [MOUNTS[0], {"Destination": "/serve/embed/serve.json"}]})}, "failure",
     "mounted alone", "mount the folder"),
    (11, "ts-embed", {"node": {"serve": serve_of("vllm", "qmd-embed")}}, "failure", "is not the one on disk", "qmdctl restart ts-embed"),
    (11, "ts-vllm", {"settings": {"API_KEYS_FILE": "./k"}}, "failure", "by .env it is to be", "qmdctl up"),
    (12, "ts-embed", {"node": {**OUT, "state": "NeedsMachineAuth"}}, "failure", "waits for approval", "admin/machines"),
    (13, "ts-embed", {"log": ("2026/11/25 12:00:00 http: TLS handshake error from 100.64.0.9:53: no webserver configured for name/port",)},
     "warning", "(last 100.64.0.9) asks by another name", f"https://qmd-embed.{SUFFIX}"),
    (13, "ts-embed", {"log": ("http: TLS handshake error from [fd7a:115c:a1e0::9]:5301: no SNI ServerName",)}, "warning", "fd7a:", "https"),
    (14, "ts-embed", {"node": SERVICE, "peers": ({"OS": "linux"},)}, "skipped", "--accept-routes", ""),
    (15, "ts-vllm", {"backends": (container("vllm", environment={}),)}, "failure", "closes an idle connection after 5 s", "120"),
    (15, "ts-embed", {"log": ("2026/11/25 12:00:05 http: proxy error: read tcp 1.2.3.4:5->6.7.8.9:1: read: connection reset by peer",)},
     "warning", "requests broke off", "qmdctl logs embed"),
]  # fmt: skip


def matching(findings: list[Finding], level: str, what: str, fix: str) -> bool:
    return any(finding.level == level and what in finding.what and fix in finding.fix for finding in findings)


@pytest.mark.parametrize(
    ("number", "service", "differs", "level", "what", "fix"), SYMPTOMS, ids=[f"{s[0]}-{i}" for i, s in enumerate(SYMPTOMS)]
)
def test_symptom(tmp_path: Path, number: int, service: str, differs: dict[str, Any], level: str, what: str, fix: str) -> None:
    findings = list(judge(evidence(tmp_path, service, **differs)))
    assert matching(findings, level, what, fix), findings
    assert all(finding.what.startswith(service) for finding in findings)
    assert not any(finding.level == "ok" for finding in findings) or level == "skipped"
    assert "kAbC" not in str(findings), "a key's name is not shown"


def test_each_of_the_fifteen_is_there() -> None:
    assert {number for number, *_ in SYMPTOMS} == set(range(1, 16))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{ // no", "is not JSON"),
        ('{"version": "0.0.1", "services": {}}', "not a serve config"),
        ('{"Web": {"$${A}": {}}}', "not a serve config"),
    ],
)
def test_a_file_in_another_dialect_is_the_cause(tmp_path: Path, text: str, what: str) -> None:
    """1. HTTPS is on and nothing is served."""
    seen = evidence(tmp_path, node={"serve": {}})
    (tmp_path / "tailscale/embed/serve.json").write_text(text)
    assert matching(list(judge(seen)), "failure", what, "git checkout")


OLD = [
    "2026/11/25 11:59:00 http: proxy error: dial tcp 172.18.0.2:8001: connect: connection refused",
    "2026/11/25 11:59:00 http: proxy error: EOF",
]


@pytest.mark.parametrize("line", OLD)
def test_what_was_before_the_service_started_is_over(tmp_path: Path, line: str) -> None:
    (finding,) = judge(evidence(tmp_path, log=(line,)))
    assert finding.level == "ok"


@pytest.mark.parametrize(
    "log",
    [
        ("backend error: invalid key: API key kAbC not valid", "requested tags [tag:a] are invalid or not permitted", CONTROL_LINE),
        ("cert: rateLimited", "http: TLS handshake error from 100.64.0.9:5301: EOF"),
    ],
)
def test_a_trouble_that_is_over_is_not_told(tmp_path: Path, log: tuple[str, ...]) -> None:
    """The node is logged in and has its certificate."""
    (finding,) = judge(evidence(tmp_path, log=log))
    assert finding.level == "ok"


@pytest.mark.parametrize(
    ("differs", "level", "what", "fix"),
    [
        ({"node": {**OUT, "auth_url": "https://login/x"}}, "failure", "waits for somebody to log it in", "open https://login/x"),
        ({"node": {**OUT, "state": "Stopped"}}, "failure", "switched off", "tailscale up"),
        ({"node": {"expired": True}}, "failure", "login has expired", "a new key"),
        ({"node": {**OUT, "state": ""}}, "failure", "tailscaled does not answer", "qmdctl restart ts-embed"),
        ({"node": OUT, "log": (CONTROL_LINE,)}, "failure", "does not reach the control server", "TS_LOGIN_SERVER"),
        ({"node": {"online": False}}, "warning", "connection to the login server is lost", "internet"),
        ({"node": {"capabilities": frozenset({"funnel"})}}, "warning", "permits this node Funnel", "nodeAttrs"),
        ({"box": LOOP, "node": {**OUT, "state": ""}, "log": ("boot: x",)}, "failure", "does not run", "qmdctl logs ts-embed"),
    ],
)
def test_other_troubles(tmp_path: Path, differs: dict[str, Any], level: str, what: str, fix: str) -> None:
    findings = list(judge(evidence(tmp_path, **differs)))
    assert matching(findings, level, what, fix), findings


def test_one_that_is_still_connecting_is_no_trouble(tmp_path: Path) -> None:
    (finding,) = judge(evidence(tmp_path, node=OUT))
    assert (finding.level, finding.what) == ("ok", "ts-embed: connecting (state NeedsLogin)")


STATUS = {  # recorded on the tests' tailnet with HTTPS off, shortened
    "Version": "1.102.3-ERR-BuildInfo",
    "BackendState": "Running",
    "AuthURL": "",
    "Self": {
        "DNSName": "qmd-embed.tail0001.ts.net.",
        "TailscaleIPs": ["100.64.0.2", "fd7a:115c:a1e0:ab12:4843:cd96:6240:2"],
        "Relay": "test",
        "Online": True,
        "CapMap": {"debug-disable-upnp": None, "https": None, "https://tailscale.com/cap/file-sharing": None},
    },
    "Health": [],
    "CurrentTailnet": {"Name": "fake-control.example.net", "MagicDNSSuffix": "tail0001.ts.net", "MagicDNSEnabled": False},
    "CertDomains": None,
    "Peer": {"nodekey:96ee": {"HostName": "qmd-vllm", "OS": "linux", "CurAddr": "", "Relay": "test", "Active": False}},
}


class Looking:
    """FAKE engine, with the recorded answers of a sidecar."""

    def __init__(self) -> None:
        self.client = SimpleNamespace(api=SimpleNamespace(inspect_container=lambda name: inspected()[name]))
        self.asked: list[list[str]] = []

    def execute(self, container: Container, command: list[str]) -> str:
        self.asked.append(command)
        whole = json.dumps(STATUS)
        return whole if "--json" in command else f"{MARK} status\n{whole}\n{MARK} serve\n{{}}\n{MARK} prefs\n{{}}\n{MARK} certificates\n"

    def logs(self, container: Container, **options: Any) -> list[str]:
        return list(HTTPS_LINES)


def test_what_is_gathered(tmp_path: Path) -> None:
    containers = {"ts-embed": sidecar_container(), "embed": EMBED}
    tailnet_settings(tmp_path)
    context = FakeEngine(tmp_path, machine(), {"COMPOSE_PROFILES": "tailnet"}, containers=containers)
    context.__dict__["_engine"] = cast(Engine, Looking())
    seen = gather(context, containers["ts-embed"])
    assert (seen.sidecar.name, seen.sidecar.cert_domains, len(seen.peers)) == ("qmd-embed.tail0001.ts.net", (), 1)
    assert [one.service for one in seen.backends] == ["embed"]
    assert seen.inspect("embed", "HostConfig", "NetworkMode") == "qmd_edge-embed"
    assert seen.unreached is None, "it leads nowhere, so nothing is asked"
    findings = list(check(context))
    assert [finding.level for finding in findings] == ["failure"]
    assert "gives no certificates" in findings[0].what
