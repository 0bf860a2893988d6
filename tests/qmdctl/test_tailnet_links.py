"""The links of a sidecar in `health`. Made by hand: the sidecars; FAKE: the engine that looks inside. The real ones: tests/tailnet."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, cast

import pytest

from qmdctl.engine import Engine
from qmdctl.probes import Broken, Link
from qmdctl.process import run
from qmdctl.tailnet import links, through
from qmdctl.tailnet.certificate import Certificate
from qmdctl.tailnet.links import Tailnet, check_sidecar, check_sidecars
from qmdctl.tailnet.reach import SCRIPT, judge
from qmdctl.tailnet.sidecar import Sidecar
from qmdctl.tailnet.through import Answer, Refused, Unreached
from tests.qmdctl.containers import container
from tests.qmdctl.tailnets import SUFFIX, FakeExec, in_days, serve_of, sidecar, sidecar_container, tailnet_settings

NAMES = [
    *(
        "container",
        "login",
        "name",
        "tag",
        "login's end",
        "HTTPS",
        "certificate",
        "serve config",
        "leads to",
        "Funnel",
        "backend",
        "request",
    )
]


@pytest.fixture(autouse=True)
def no_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine is on no tailnet."""
    monkeypatch.setattr(through, "host_knows", lambda name: False)


@pytest.fixture
def embed() -> Iterator[Any]:
    """A FAKE embed service on a port of its own: `embed.status` is what it answers a request from Funnel."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            funnel = "Tailscale-Funnel-Request" in self.headers
            self.send_response(server.status if funnel else 200)  # type: ignore[attr-defined]
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.status = 403  # type: ignore[attr-defined]
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def tailnet(folder: Path, *sidecars: Sidecar, said: str = "ok\n--8<-- status 0\n", port: int = 0, key: str = "", **values: str) -> Tailnet:
    containers = {one.service: sidecar_container(one.service) for one in sidecars}
    if port:
        containers["embed"] = container("embed", health="healthy", ports={"8001/tcp": port})
    settings = tailnet_settings(folder, **values)
    return Tailnet(cast(Engine, FakeExec(said)), settings, containers, {one.service: one for one in sidecars}, key or None, 5.0)


def chain(folder: Path, one: Sidecar, **more: Any) -> dict[str, Link]:
    return {link.name: link for link in check_sidecar(tailnet(folder, one, **more), one.service)}


def test_a_sidecar_that_is_well(tmp_path: Path, embed: Any) -> None:
    found = chain(tmp_path, sidecar(), port=embed.server_address[1])
    assert list(found) == NAMES
    assert {link.ok for name, link in found.items() if name != "request"} == {True}
    assert found["name"].detail == f"qmd-embed.{SUFFIX}"
    assert found["leads to"].detail == "http://embed:8001"
    assert "embed refuses such requests" in found["Funnel"].detail
    assert "policy cannot be read from here" in found["Funnel"].detail
    assert found["backend"].detail == "http://embed:8001 answers 200"
    request = found["request"]
    assert (request.ok, request.payload()["state"]) == (None, "skipped")
    assert "no other node" in request.detail and "qmdctl test" in request.detail


EXPIRY = in_days(3)
RENAMED = {
    "name": f"qmd-embed-1.{SUFFIX}",
    "cert_domains": (f"qmd-embed-1.{SUFFIX}",),
    "certificate": Certificate((f"qmd-embed-1.{SUFFIX}",), in_days(60)),
    "serve": serve_of("embed", "qmd-embed-1"),
}
BROKEN = [
    ("login", {"state": ""}, "tailscaled does not answer", "qmdctl restart ts-embed"),
    ("login", {"state": "NeedsLogin", "auth_url": "https://login/x"}, "waits for somebody", "open https://login/x"),
    ("login", {"state": "NeedsLogin"}, "no link", "qmdctl doctor"),
    ("login", {"state": "NeedsMachineAuth"}, "approval", "admin/machines"),
    ("login", {"state": "Stopped"}, "switched off", "docker exec qmd-ts-embed tailscale up"),
    ("login", {"state": "Starting"}, "not connected yet (state Starting)", "wait"),
    ("login", {"expired": True}, "login has expired", "a new key"),
    ("login", {"expired": True, "state": "NeedsLogin"}, "login has expired", "a new key"),
    ("login", {"expired": True, "state": "NeedsLogin", "auth_url": "https://login/x"}, "login has expired", "open https://login/x"),
    ("login", {"state": "NeedsLogin", "health": ("The last login error was: invalid key: x",)}, "refused: invalid key: x",
     "qmdctl doctor"),
    ("login", {"online": False}, "connection to the login server is lost", "internet"),
    ("name", RENAMED, "another machine called qmd-embed", "remove the old qmd-embed"),
    ("name", {"name": "", "cert_domains": ()}, "no name", "MagicDNS"),
    ("login's end", {"expiry": in_days(-1)}, "login has expired", "a new key"),
    ("HTTPS", {"cert_domains": ()}, "gives no certificates", "HTTPS Certificates"),
    ("certificate", {"certificate": None}, "there is none", "keep the volume"),
    ("certificate", {"certificate": None, "health": ("Fetching TLS certificate via ACME",)}, "Fetching", "wait"),
    ("certificate", {"certificate": Certificate((f"qmd-embed.{SUFFIX}",), in_days(-2))}, "it was not renewed", "qmdctl restart"),
    ("certificate", {"certificate": Certificate((f"other.{SUFFIX}",), in_days(50))}, f"not for qmd-embed.{SUFFIX}", "qmdctl restart"),
    ("serve config", {"serve": {}}, "tailscale/embed/serve.json is not in force, nothing is", "qmdctl restart ts-embed"),
    ("serve config", {"serve": serve_of("vllm", "qmd-embed")}, "something else is", "qmdctl restart ts-embed"),
    ("serve config", {"serve_path": "/serve/vllm/serve.json"}, "it is to be /serve/embed/serve.json", "qmdctl up"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "fields", "why", "fix"), BROKEN)
def test_the_link_that_is_broken(tmp_path: Path, embed: Any, name: str, fields: dict[str, Any], why: str, fix: str) -> None:
    found = chain(tmp_path, sidecar(**fields), port=embed.server_address[1])
    assert [link.name for link in found.values() if link.ok is False] == ([name, "HTTPS"] if fields.get("name") == "" else [name])
    assert why in found[name].detail
    assert fix in found[name].fix
    later = NAMES[NAMES.index(name) + 1 :]
    if name == "login":
        assert {found[one].ok for one in later} == {None}, "what follows is not tried"
    if fields is RENAMED:
        assert found["certificate"].ok and found["serve config"].ok, "they stand side by side"


@pytest.mark.parametrize(
    ("name", "fields", "values", "words"),
    [
        ("tag", {"tags": ()}, {}, "warning: no tag"),
        ("tag", {}, {"TS_TAGS": "tag:qmd-server,tag:other"}, "tag:other of TS_TAGS is not among them"),
        ("login's end", {"expiry": EXPIRY}, {}, f"warning: it ends on {EXPIRY:%Y-%m-%d}, in 3 days"),
        ("login's end", {"expiry": in_days(100)}, {}, f"it ends on {in_days(100):%Y-%m-%d}"),
        ("certificate", {"certificate": Certificate((f"Qmd-Embed.{SUFFIX}",), in_days(10))}, {}, "should have been renewed by now"),
    ],
)
def test_what_is_worth_saying_and_breaks_nothing(
    tmp_path: Path, embed: Any, name: str, fields: dict[str, Any], values: dict[str, str], words: str
) -> None:
    found = chain(tmp_path, sidecar(**fields), port=embed.server_address[1], **values)
    assert found[name].ok is True
    assert words in found[name].detail


@pytest.mark.parametrize(("state", "why", "fix"), [("exited", "ended", "qmdctl"), ("restarting", "ends again and again", "qmdctl logs")])
def test_a_container_that_does_not_run(tmp_path: Path, state: str, why: str, fix: str) -> None:
    there = {"ts-embed": sidecar_container(state=state, health="", exit_code=1)}
    net = Tailnet(cast(Engine, FakeExec()), tailnet_settings(tmp_path), there, {})
    first, *rest = check_sidecar(net, "ts-embed")
    assert first.ok is False and why in first.detail and fix in first.fix
    assert {link.ok for link in rest} == {None}
    (missing, *_) = check_sidecar(Tailnet(net.engine, net.settings, {}, {}), "ts-embed")
    assert missing.fix == "qmdctl up"


def test_a_file_that_is_no_serve_config(tmp_path: Path, embed: Any) -> None:
    settings = tailnet_settings(tmp_path)
    (tmp_path / "tailscale/embed/serve.json").write_text("{ // a comment\n}")
    net = tailnet(tmp_path, sidecar(), port=embed.server_address[1])
    found = {link.name: link for link in check_sidecar(net, "ts-embed")}
    assert settings.services == net.settings.services
    assert found["serve config"].ok is False and "is not JSON" in found["serve config"].detail
    assert found["request"].ok is None


THROUGH = "/serve/vllm/../vllm-through-embed/serve.json"


@pytest.mark.parametrize("values", [{"API_KEYS_FILE": "./secrets/keys"}, {"REQUIRE_CAPABILITY": "example.com/cap/qmd"}])
def test_an_open_name_beside_a_locked_one(tmp_path: Path, embed: Any, values: dict[str, str]) -> None:
    port = embed.server_address[1]
    right = sidecar("ts-vllm", serve=serve_of("vllm-through-embed", "qmd-vllm"), serve_path=THROUGH)
    assert {link.ok for name, link in chain(tmp_path, right, port=port, **values).items() if name != "request"} == {True}
    changed = chain(tmp_path, sidecar("ts-vllm"), port=port, **values)
    assert changed["serve config"].fix == "qmdctl up", "the settings changed, and the container did not"
    (tmp_path / "tailscale/vllm-through-embed/serve.json").write_text((tmp_path / "tailscale/vllm/serve.json").read_text())
    wrong = chain(tmp_path, sidecar("ts-vllm", serve_path=THROUGH), port=port, **values)
    assert wrong["leads to"].ok is False
    assert "asks for no key" in wrong["leads to"].detail and next(iter(values)) in wrong["leads to"].detail
    assert wrong["backend"].ok is None
    assert chain(tmp_path, sidecar("ts-vllm"), port=port)["leads to"].ok, "nothing is locked"


def test_a_capability_that_is_not_passed_on(tmp_path: Path, embed: Any) -> None:
    found = chain(tmp_path, sidecar(), port=embed.server_address[1], REQUIRE_CAPABILITY="corp.example/cap/llm")
    assert found["leads to"].ok is False
    assert "it passes on example.com/cap/qmd" in found["leads to"].detail
    assert "AcceptAppCaps" in found["leads to"].fix


def test_funnel_in_each_of_its_places(tmp_path: Path, embed: Any) -> None:
    port = embed.server_address[1]
    embed.status = 200
    found = chain(tmp_path, sidecar(), port=port)
    assert "embed answers 200 to a request that came through Funnel" in found["Funnel"].detail
    embed.status = 403
    (tmp_path / "tailscale/policy.hujson").write_text('{"nodeAttrs": [{"target": ["*"], "attr": ["funnel"]}]}')
    found = chain(tmp_path, sidecar(), port=port)
    assert "tailscale/policy.hujson speaks of funnel" in found["Funnel"].detail
    (tmp_path / "tailscale/policy.hujson").write_text('// no "funnel" here\n{"grants": []}')
    name = f"qmd-embed.{SUFFIX}:443"
    foreground = {**serve_of("embed", "qmd-embed"), "Foreground": {"x": {"AllowFunnel": {name: True}}}}
    found = chain(tmp_path, sidecar(serve=foreground), port=port)
    assert "in force has Foreground.x.AllowFunnel" in found["Funnel"].detail
    assert "funnel reset" in found["Funnel"].fix
    file = tmp_path / "tailscale/embed/serve.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "AllowFunnel": {"${TS_CERT_DOMAIN}:443": False}}))
    found = chain(tmp_path, sidecar(), port=port)
    assert "serve.json of tailscale/embed has AllowFunnel" in found["Funnel"].detail, "the key alone, even with false"


def test_what_refuses_funnel_behind_the_name_of_vllm(tmp_path: Path, embed: Any) -> None:
    assert "vLLM would not refuse" in chain(tmp_path, sidecar("ts-vllm"), port=embed.server_address[1])["Funnel"].detail
    alone = chain(tmp_path, sidecar())["Funnel"]
    assert alone.ok and "could not be asked" in alone.detail, "without embed its own links are broken"


@pytest.mark.parametrize(
    ("said", "why", "fix"),
    [
        # What busybox 1.35 prints.
        ("wget: bad address 'embed:8001'\n\n--8<-- status 1\n", "does not know the name embed", "networks"),
        (
            "wget: can't connect to remote host (172.18.0.2): Connection refused\n\n--8<-- status 1\n",
            "refuses the connection",
            "qmdctl status",
        ),
        ("wget: server returned error: HTTP/1.0 503 Service Unavailable\n\n--8<-- status 1\n", "says 503", "qmdctl logs embed"),
        ("wget: download timed out\n\n--8<-- status 1\n", "does not answer in 5 s", "qmdctl restart embed"),
        ("\n--8<-- status 143\n", "does not answer in 5 s", "qmdctl restart embed"),
        ("sh: wget: not found\n\n--8<-- status 127\n", "not found", "qmdctl status"),
        ("", "ended while it was asked", "qmdctl status"),
    ],
)
def test_a_service_that_is_not_reached_from_inside(tmp_path: Path, embed: Any, said: str, why: str, fix: str) -> None:
    found = chain(tmp_path, sidecar(), port=embed.server_address[1], said=said)
    assert found["backend"].ok is False
    assert why in found["backend"].detail and fix in found["backend"].fix
    assert found["request"].ok is None
    asked = chain(tmp_path, sidecar(), said="wget: server returned error: HTTP/1.1 401 Unauthorized\n--8<-- status 1\n")
    assert asked["backend"].detail == "http://embed:8001 answers 401", "it is reached"


@pytest.mark.parametrize("status", [0, 1, 127])
def test_the_command_inside_tells_how_its_request_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    """FAKE: wget; the shell is real."""
    wget = tmp_path / "wget"
    wget.write_text(f'#!/bin/sh\necho "$@"\necho oops >&2\nexit {status}\n')
    wget.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    said = run(["sh", "-c", SCRIPT, "http://embed:8001/health"]).stdout
    text, _, ended = said.rpartition("--8<-- status")
    assert ended.strip() == str(status)
    assert "http://embed:8001/health" in text and "oops" in text
    if status:
        with pytest.raises(Broken, match="is not reached"):
            judge("http://embed:8001", said, "ts-embed")
    else:
        assert judge("http://embed:8001", said, "ts-embed") == "http://embed:8001 answers 200"


def ask(folder: Path, monkeypatch: pytest.MonkeyPatch, answer: Answer | Exception, *others: Sidecar, **more: Any) -> Link:
    """FAKE: the way through the other sidecar, which gives this answer."""
    seen: list[tuple[Any, ...]] = []

    @contextmanager
    def from_container(*arguments: Any) -> Iterator[None]:
        seen.append(arguments)
        yield None

    def get(stream: None, name: str, path: str, seconds: float, headers: dict[str, str]) -> Answer:
        seen.append((name, path, headers))
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(links.through, "from_container", from_container)
    monkeypatch.setattr(links.through, "get", get)
    found = {link.name: link for link in check_sidecar(tailnet(folder, sidecar(), *others, **more), "ts-embed")}["request"]
    if others and seen:
        assert seen[0][:2] == ("ts-vllm", f"qmd-embed.{SUFFIX}"), "the container of the other one"
        assert seen[1][:2] == (f"qmd-embed.{SUFFIX}", "/health")
        assert seen[1][2] == ({"Authorization": "Bearer k"} if more.get("key") else {})
    return found


@pytest.mark.parametrize(
    ("answer", "ok", "words"),
    [
        (Answer(200, b"", "TLSv1.3"), True, f"https://qmd-embed.{SUFFIX}/health from ts-vllm: 200, TLSv1.3"),
        (Answer(401, b"", "TLSv1.3"), True, "asks for more than this node has"),
        (Answer(403, b"", "TLSv1.3"), True, "asks for more than this node has"),
        (Answer(502, b"", "TLSv1.3"), False, "does not reach what the name leads to"),
        (Answer(503, b"", "TLSv1.3"), False, "503"),
        (Refused("unable to get local issuer certificate", True), False, "is not believed here"),
        (Refused("TLS fails: tlsv1 alert internal error"), False, "alert internal error"),
        (Unreached("no answer in 5 s"), None, "the policy need not let this node reach the other"),
    ],
)
def test_the_request_over_the_tailnet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Answer | Exception, ok: bool | None, words: str
) -> None:
    found = ask(tmp_path, monkeypatch, answer, sidecar("ts-vllm"), key="k")
    assert found.ok is ok
    assert words in found.detail
    assert (found.fix == "") is (ok is not False)
    if ok is None:
        assert "run `qmdctl test` on a laptop" in found.detail


def test_another_sidecar_that_is_not_in_the_tailnet_is_no_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = ask(tmp_path, monkeypatch, Answer(200, b"", ""), sidecar("ts-vllm", state="NeedsLogin"))
    assert found.ok is None and "no other node" in found.detail


def test_a_machine_that_is_on_the_tailnet_itself_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(through, "host_knows", lambda name: name == f"qmd-embed.{SUFFIX}")

    @contextmanager
    def from_here(address: str, seconds: float) -> Iterator[None]:
        if address != "100.64.0.2":
            raise AssertionError(address)
        yield None

    monkeypatch.setattr(links.through, "from_here", from_here)
    found = ask(tmp_path, monkeypatch, Answer(200, b"", "TLSv1.3"))
    assert found.ok and "from this machine" in found.detail


SHARED = "svc:qmd-embed"


@pytest.mark.parametrize(
    ("fields", "ok", "words", "fix"),
    [
        ({"advertised": (SHARED,), "capabilities": frozenset({"service-host"})}, True, f"https://qmd-embed.{SUFFIX}", ""),
        ({"advertised": (SHARED,)}, True, "warning: the tailnet has not approved this host", ""),
        ({}, False, f"{SHARED} is not advertised", f"tailscale serve advertise {SHARED}"),
        ({"tags": ()}, False, "only a node with a tag", "TS_TAGS"),
        ({"serve": None}, False, "has no Service", "qmdctl up"),
    ],
)
def test_services(tmp_path: Path, fields: dict[str, Any], ok: bool, words: str, fix: str) -> None:
    node = {"wanted": "qmd-embed-box", "name": f"qmd-embed-box.{SUFFIX}", "cert_domains": (f"qmd-embed-box.{SUFFIX}",)}
    own = serve_of("embed", "qmd-embed-box")
    web = {f"qmd-embed.{SUFFIX}:443": next(iter(own["Web"].values()))}
    shared = own if "serve" in fields else {**own, "Services": {SHARED: {"TCP": {"443": {"HTTPS": True}}, "Web": web}}}
    tailnet_settings(tmp_path)
    (tmp_path / "tailscale/services/embed").mkdir(parents=True)
    (tmp_path / "tailscale/services/embed/serve.json").write_text(json.dumps(shared))
    one = sidecar(serve_path="/serve/services/embed/serve.json", **{**node, **fields, "serve": shared})
    found = chain(tmp_path, one, TAILNET_SERVICE="1", EMBED_HOSTNAME="qmd-embed-box")
    assert found["serve config"].ok
    assert found["Service"].ok is ok
    assert words in found["Service"].detail and fix in found["Service"].fix
    assert "Service" not in chain(tmp_path, sidecar())


def test_none_where_the_profile_is_off(tmp_path: Path) -> None:
    engine = cast(Engine, FakeExec())
    assert check_sidecars(engine, tailnet_settings(tmp_path, COMPOSE_PROFILES="generation"), {}, None, 5) == []
    found = check_sidecars(engine, tailnet_settings(tmp_path), {"ts-embed": sidecar_container()}, None, 5)
    assert {link.service for link in found} == {"ts-embed", "ts-vllm"}
    broken = [(link.service, link.name) for link in found if link.ok is False]
    assert broken == [("ts-embed", "login"), ("ts-vllm", "container")], "the FAKE engine's answer is no sidecar's"


def test_a_policy_that_would_permit_funnel_is_a_warning(tmp_path: Path, embed: Any) -> None:
    """That of a new tailnet permits it to every person's machines, so to a node that was logged in by a link."""
    found = chain(tmp_path, sidecar(capabilities=frozenset({"https", "funnel"})), port=embed.server_address[1])["Funnel"]
    assert found.ok
    assert "warning: the tailnet's policy permits this node Funnel" in found.detail
