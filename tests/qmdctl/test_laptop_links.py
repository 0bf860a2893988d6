"""Each link, whole and broken: real TLS ends with certificates of a test's own authority, real ports, the real embed service."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qmdctl.laptop import dial, links
from qmdctl.laptop.clients import default_models
from qmdctl.laptop.links import Proof, addresses_of_nodes, closed, prove
from qmdctl.laptop.models import served_models
from qmdctl.laptop.names import Names
from qmdctl.laptop.reach import Laptop, full_name, proxy_note, resolved
from qmdctl.laptop.tailscale import Pong, Tailnet, parse
from qmdctl.probes import Broken, Link
from tests.qmdctl.test_laptop_names import EMBED, VLLM
from tests.support.laptop import SUFFIX, Answer, Authority, FakeStack, dripping_port, node, silent_port, status, tls_end
from tests.support.service import ServiceProcess, free_port

NO_TAILNET = Laptop(without="There is no tailscale command on this machine", timeout_seconds=20)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca") / "own")


@pytest.fixture(autouse=True)
def trusted(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    # A proxy that is not there: whatever goes through it fails.
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")


@pytest.fixture
def stack() -> Iterator[FakeStack]:
    with FakeStack() as running:
        yield running


def by_name(proof: Proof, service: str = "embed") -> dict[str, Link]:
    return {link.name: link for link in proof.links if link.service == service}


def broken(proof: Proof) -> tuple[str, str, str]:
    """Name, cause and fix of the first broken link; every link after it on its way is not tried."""
    link = proof.broken
    assert link is not None
    assert link.fix
    return link.name, link.detail, link.fix


def test_every_link_of_the_real_service_behind_tls(service: ServiceProcess, authority: Authority) -> None:
    with FakeStack(authority.issue("localhost")) as vllm, tls_end(authority.issue("localhost"), service.port) as port:
        proof = prove(Names(f"https://localhost:{port}", vllm.url), NO_TAILNET)
    assert proof.broken is None
    embed, generate = by_name(proof), by_name(proof, "vllm")
    assert [link.name for link in proof.links if link.ok] == [
        *("name", f"port {port}", "certificate", "/health", "embedding", "rerank"),
        *("name", f"port {vllm.port}", "certificate", "/health", "completion", "chat"),
    ]
    assert "issued by Test Authority Test Authority Root" in embed["certificate"].detail and "days left" in embed["certificate"].detail
    assert "384 dimensions, length 1.000; " in embed["embedding"].detail
    assert proof.fingerprint and proof.fingerprint in embed["embedding"].detail
    assert proof.models["completion"] == "a/writer" and "a/writer" in generate["chat"].detail
    assert all(link.seconds is not None for link in proof.links if link.ok)
    assert all("not tried: " in embed[name].detail for name in ("closed ports", "path"))


def test_what_is_sent_is_what_qmd_sends(stack: FakeStack) -> None:
    proof = prove(Names(stack.url), NO_TAILNET)
    assert proof.broken is None
    assert [path for path, _, _ in stack.requests] == ["/health", "/v1/embeddings", "/v1/rerank", "/v1/completions", "/v1/chat/completions"]
    assert {bearer for _, bearer, _ in stack.requests} == {"Bearer any"}
    bodies = {path: body for path, _, body in stack.requests}
    query, *passages = bodies["/v1/embeddings"]["input"]
    assert query.startswith("task: search result | query: ")
    assert all(text.startswith("title: none | text: ") for text in passages)
    assert bodies["/v1/embeddings"]["model"].startswith("hf:ggml-org/embeddinggemma")
    assert bodies["/v1/chat/completions"]["messages"][1]["content"].startswith("/no_think ")
    links = by_name(proof)
    assert {"forwarded completion", "forwarded chat"} <= set(links)
    assert "plain HTTP" in links["certificate"].detail


def test_a_key_opens_and_its_lack_is_told(service: ServiceProcess) -> None:
    with FakeStack(key="sesame") as stack:
        assert prove(Names(stack.url), Laptop(key="sesame")).broken is None
        name, why, fix = broken(prove(Names(stack.url), Laptop()))
        assert (name, why) == ("embedding", "/v1/embeddings answered 401: it wants an API key, and none was given")
        assert "--key-file" in fix and "QMD_API_KEY" in fix
        assert "is not one of its keys" in broken(prove(Names(stack.url), Laptop(key="other")))[1]


WRONG: list[tuple[str, Answer, str, str, str]] = [
    ("/health", Answer(503, {"status": "loading", "phase": "downloading"}), "/health", "not ready: phase downloading", "wait"),
    ("/health", Answer(503, {"status": "error", "error": "no CUDA device"}), "/health", "no CUDA device", "on the GPU box: qmdctl status"),
    ("/health", Answer(502, ""), "/health", "the sidecar answers, but does not reach the service", "on the GPU box"),
    ("/health", Answer(200, "<html>Sign in</html>", "text/html"), "/health", "another server answers here: '<html>Sign in", "portal"),
    ("/health", Answer(302, "", "text/html", {"location": "https://login/"}), "/health", "a redirect to https://login/", "portal"),
    ("/v1/embeddings", Answer(403, {"error": {"message": "wants the capability x"}}), "embedding", "403: wants the capability x", "grants"),
    ("/v1/embeddings", Answer(200, {"data": [{"embedding": [3.0, 4.0]}] * 3}), "embedding", "length is 5.0000", "qmdctl restart embed"),
    ("/v1/embeddings", Answer(200, {"data": [{"embedding": [0.6, 0.8]}] * 2}), "embedding", "no numbers", "qmdctl restart embed"),
    (
        "/v1/embeddings",
        Answer(200, {"data": [{"embedding": [1.0]}, {"embedding": [0.6, 0.8]}, {"embedding": [1.0]}]}),
        "embedding",
        "1 and 2 dimensions",
        "qmdctl restart embed",
    ),
    ("/v1/embeddings", Answer(404, {"error": {"message": "no model hf:x"}}), "embedding", "404: no model hf:x", "qmdctl logs embed"),
    (
        "/v1/rerank",
        Answer(200, {"results": [{"index": 0, "relevance_score": 0.1}, {"index": 1, "relevance_score": 0.9}]}),
        "rerank",
        "does not fit first",
        "on the GPU box: qmdctl restart embed",
    ),
    ("/v1/rerank", Answer(200, {"results": [{"index": [], "relevance_score": 0.5}]}), "rerank", "documents ['[]'] of 2", "qmdctl"),
    ("/v1/rerank", Answer(200, {"results": ["x", 3]}), "rerank", "score None", "qmdctl"),
    ("/v1/embeddings", Answer(200, {"data": [{"embedding": [10**400]}] * 3}), "embedding", "not finite", "qmdctl"),
    ("/v1/rerank", Answer(200, {"results": [{"index": 0, "relevance_score": 7.5}]}), "rerank", "7.5 is not in [0, 1]", "qmdctl"),
    (
        "/v1/completions",
        Answer(404, {"error": {"message": "GENERATION_URL is not set"}}),
        "forwarded completion",
        "does not forward generation",
        "--generate-url",
    ),
    (
        "/v1/completions",
        Answer(503, {"error": {"message": "full"}}, headers={"retry-after": "5"}),
        "forwarded completion",
        "Retry-After: 5",
        "qmdctl",
    ),
    (
        "/v1/chat/completions",
        Answer(200, {"choices": [{"message": {"content": " "}}]}),
        "forwarded chat",
        "came back empty",
        "on the GPU box",
    ),
    (
        "/v1/chat/completions",
        Answer(200, {"choices": [{"message": {"content": "<think>"}}]}),
        "forwarded chat",
        "<think>",
        "on the GPU box",
    ),
]


@pytest.mark.parametrize(("path", "answer", "link", "why", "fix"), WRONG, ids=[f"{row[2]}-{row[3][:20]}" for row in WRONG])
def test_a_wrong_answer_is_named_with_its_fix(path: str, answer: Answer, link: str, why: str, fix: str) -> None:
    with FakeStack(wrong={path: answer}) as stack:
        proof = prove(Names(stack.url), NO_TAILNET)
    told = broken(proof)
    assert told[0] == link
    assert why in told[1]
    assert fix in told[2]
    if link == "/health":
        assert {by_name(proof)[name].detail for name in ("embedding", "rerank", "forwarded chat")} == {""}


def test_a_broken_name_does_not_hide_the_other(stack: FakeStack) -> None:
    proof = prove(Names(f"http://127.0.0.1:{free_port()}", stack.url), NO_TAILNET)
    assert broken(proof)[0].startswith("port ")
    assert by_name(proof, "vllm")["chat"].ok


def test_silence_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dial, "HANDSHAKE_SECONDS", 0.2)
    with silent_port() as port:
        name, why, _ = broken(prove(Names(f"http://127.0.0.1:{port}"), Laptop(timeout_seconds=0.2)))
        assert name == "/health" and "not answered" in why
        with pytest.raises(Broken, match="may be on order"):
            dial.certificate("localhost", port, dial.trust(), seconds=0.2)


ANSWERED = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nserver: ", ANSWERED + b"content-length: 100000\r\n\r\n", ANSWERED + b"\r\n"])
def test_an_answer_that_drips_is_given_up_in_the_same_time(head: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qmdctl.laptop.models.SECONDS", 0.3)
    with dripping_port(head) as port:
        names = Names(f"http://127.0.0.1:{port}")
        name, why, _ = broken(prove(names, Laptop(timeout_seconds=0.3)))
        assert name == "/health" and "not answered in" in why
        assert set(served_models(names, default_models()).origins.values()) == {"default"}


def test_an_answer_without_an_end_is_given_up() -> None:
    with dripping_port(ANSWERED + b"\r\n", b" " * 4 * 1024**2) as port:
        assert "larger than 16 MiB" in broken(prove(Names(f"http://127.0.0.1:{port}"), Laptop()))[1]


@pytest.mark.parametrize(
    ("host", "names", "dates", "why", "fix"),
    [
        (
            "localhost",
            ["qmd-embed.other.ts.net"],
            {},
            "is not for localhost. It names qmd-embed.other.ts.net, issued by Test",
            "qmdctl health",
        ),
        ("localhost", ["localhost"], {"end": "20210101000000Z"}, "has ended on Jan  1 00:00:00 2021 GMT", "clock"),
        ("localhost", ["localhost"], {"start": "20980101000000Z"}, "not valid yet", "clock"),
        (
            "127.0.0.1",
            [f"qmd-embed.{SUFFIX}"],
            {},
            "the address 127.0.0.1 has no certificate: the full name is needed",
            f"https://qmd-embed.{SUFFIX}",
        ),
    ],
)
def test_certificates_that_do_not_hold(
    authority: Authority, host: str, names: list[str], dates: dict[str, str], why: str, fix: str
) -> None:
    with FakeStack(authority.issue(*names, **dates)) as stack, pytest.raises(Broken) as caught:
        dial.certificate(host, stack.port, dial.trust(), f"qmd-embed.{SUFFIX}")
    assert why in caught.value.why
    assert fix in caught.value.fix


def test_an_authority_that_is_not_trusted_is_named(tmp_path: Path) -> None:
    with FakeStack(Authority(tmp_path / "proxy", "Inspecting Proxy").issue("localhost")) as stack:
        name, why, fix = broken(prove(Names(stack.url), NO_TAILNET))
    assert name == "certificate"
    assert "not trusted here" in why and "issued by Inspecting Proxy" in why
    assert "SSL_CERT_FILE" in fix and "NODE_EXTRA_CA_CERTS" in fix
    assert [path for path, _, _ in stack.requests] == []  # no key went to it


def test_a_certificate_soon_to_end_holds_with_a_hint(authority: Authority) -> None:
    from datetime import UTC, datetime, timedelta

    end = f"{datetime.now(UTC) + timedelta(days=3, hours=1):%Y%m%d%H%M%SZ}"
    with FakeStack(authority.issue("localhost", end=end)) as stack:
        told, hint = dial.certificate("localhost", stack.port, dial.trust())
    assert "3 days left" in told
    assert "renewed" in hint


def test_no_certificate_at_all(stack: FakeStack) -> None:
    with pytest.raises(Broken, match="plain HTTP"):
        dial.certificate("localhost", stack.port, dial.trust())

    def refuse(socket: ssl.SSLObject, name: str, context: ssl.SSLContext) -> int:
        return ssl.ALERT_DESCRIPTION_INTERNAL_ERROR  # as a sidecar without a certificate for this name

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sni_callback = refuse  # type: ignore[assignment]
    with FakeStack(context) as bare:
        with pytest.raises(Broken, match="HTTPS is off on the tailnet") as caught:
            dial.certificate("localhost", bare.port, dial.trust())
        assert "admin/dns" in caught.value.fix


def test_trust_without_variables_is_the_machines_and_certifis(authority: Authority) -> None:
    assert len(dial.trust({}).get_ca_certs()) > 50
    assert not dial.trust({}).verify_flags & ssl.VERIFY_X509_STRICT


def test_a_file_of_authorities_that_is_not_there(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/not/there.pem")
    with FakeStack(authority.issue("localhost")) as stack:
        assert "SSL_CERT_FILE names /not/there.pem, which is not there" in broken(prove(Names(stack.url), NO_TAILNET))[1]


def test_open_ports_are_a_broken_link(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert dial.open_ports(["127.0.0.1"], [port, free_port()]) == [f"127.0.0.1:{port}"]
        monkeypatch.setattr("qmdctl.laptop.links.CLOSED_PORTS", (free_port(), port))
        with pytest.raises(Broken) as caught:
            closed(["127.0.0.1"], "embed")
    assert f"127.0.0.1:{port} open to the tailnet" in caught.value.why
    assert "on the GPU box" in caught.value.fix
    assert "are closed" in closed(["127.0.0.1"], "embed")
    assert dial.open_ports([], [1]) == []


def test_a_port_that_cannot_be_asked_is_not_called_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(dial.Untried, match=r"127\.0\.0\.999: "):
        dial.open_ports(["127.0.0.1", "127.0.0.999"], [free_port()])
    monkeypatch.setattr(dial, "open_ports", lambda addresses, ports: (_ for _ in ()).throw(dial.Untried("::7: Network is unreachable")))
    link = links._try("embed", "closed ports", lambda: closed(["::7"], "embed"))
    assert (link.ok, link.detail) == (None, "not tried: ::7: Network is unreachable")


def test_ports_of_the_nodes_behind_a_service_are_looked_at_too() -> None:
    host = node("qmd-embed-box1", "100.64.0.1", AllowedIPs=["100.64.0.1/32", "100.100.7.7/32", "10.0.0.0/8"])
    laptop = Laptop(parse("tailscale", status(host)))
    assert addresses_of_nodes(["100.100.7.7", "fd7a:115c:a1e0::7"], laptop) == ["100.100.7.7", "fd7a:115c:a1e0::7", "100.64.0.1"]
    assert addresses_of_nodes(["127.0.0.1", "93.184.216.34"], laptop) == []


def name_link(host: str, addresses: list[str], tailnet: Tailnet | None) -> Link:
    laptop = Laptop(tailnet, "There is no tailscale command on this machine", resolve=lambda name: addresses)
    return by_name(prove(Names(f"http://{host}:{free_port()}"), laptop))["name"]


@pytest.mark.parametrize(
    ("host", "addresses", "document", "why", "fix"),
    [
        (f"qmd-embed.{SUFFIX}", [], None, "this machine has no tailscale", "install Tailscale"),
        (f"qmd-embed.{SUFFIX}", [], status(EMBED, state="NeedsLogin"), "logged out", "tailscale up"),
        (f"qmd-embed.{SUFFIX}", [], status(EMBED, magic_dns=False), "MagicDNS is off on this tailnet", "admin/dns"),
        (f"qmd-embed.{SUFFIX}", [], status(EMBED), "this machine does not ask MagicDNS", "accept-dns=true"),
        (f"qmd-embed.{SUFFIX}", [], status(VLLM), "has no such node", "qmdctl test"),
        ("qmd-embed", [], status(EMBED), "does not resolve", f"https://qmd-embed.{SUFFIX}"),
        (f"qmd-embed.{SUFFIX}", ["209.177.145.1"], status(EMBED), "no address of a tailnet", "Funnel"),
        (f"qmd-embed.{SUFFIX}", ["100.64.0.77"], status(EMBED), "the node of that name has 100.64.0.1", "hosts file"),
        ("nowhere.example", [], None, "does not resolve", "is the name right"),
    ],
)
def test_names_that_do_not_lead_there(host: str, addresses: list[str], document: Any, why: str, fix: str) -> None:
    link = name_link(host, addresses, parse("tailscale", document) if document else None)
    assert link.ok is False
    assert why in link.detail
    assert fix in link.fix


def test_one_name_given_twice() -> None:
    twice = parse("tailscale", status(EMBED, node("qmd-embed", "100.64.0.4")))
    laptop = Laptop(twice, resolve=lambda name: ["100.64.0.4"])
    assert resolved(f"qmd-embed.{SUFFIX}", laptop) == ["100.64.0.4"]


def test_the_resolver_itself_is_asked() -> None:
    assert dial.lookup("localhost")[0] == "127.0.0.1"
    assert dial.lookup("127.0.0.1") == ["127.0.0.1"]
    assert dial.in_tailnet("100.64.0.1") and dial.in_tailnet("fd7a:115c:a1e0::1") and not dial.in_tailnet("100.128.0.1")


def test_a_machine_that_is_not_on_the_tailnet_is_the_first_broken_link(stack: FakeStack) -> None:
    stopped = parse("tailscale", status(EMBED, state="Stopped"))
    proof = prove(Names(f"https://qmd-embed.{SUFFIX}"), Laptop(stopped, resolve=lambda name: []))
    assert broken(proof)[:2] == ("tailscale", "Tailscale is switched off on this machine")
    assert prove(Names(stack.url), Laptop(stopped)).broken is None  # it is not needed for this address


def test_silence_of_a_port_is_the_policys_or_the_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dial, "connect", lambda host, port, fix: (_ for _ in ()).throw(dial.Silent("port 443 did not answer", fix)))
    monkeypatch.setattr(dial, "open_ports", lambda addresses, ports: [])
    names, read = Names(f"https://qmd-embed.{SUFFIX}"), parse("tailscale", status(EMBED))

    def proof(pong: Pong | None, tailnet: Tailnet | None = read) -> Proof:
        return prove(names, Laptop(tailnet, resolve=lambda name: ["100.64.0.1"], ping=lambda tailnet, address: pong))

    barred = proof(Pong("192.168.1.7:41651", "", "", "3 ms"))
    assert "answers a ping, but not there: the tailnet's policy" in broken(barred)[1]
    assert by_name(barred)["path"].detail == "1 hop, direct 192.168.1.7:41651, 3 ms"
    offline = proof(None)
    assert "it is offline" in broken(offline)[1] and "qmdctl start ts-embed" in broken(offline)[2]
    assert by_name(offline)["path"].ok is None and by_name(offline)["closed ports"].ok is None
    assert broken(proof(None, None))[1] == "port 443 did not answer"


def test_full_names() -> None:
    laptop = Laptop(parse("tailscale", status(EMBED)))
    assert full_name("qmd-embed", laptop) == full_name("100.64.0.1", laptop) == f"qmd-embed.{SUFFIX}"
    assert full_name("qmd-vllm", laptop) == f"qmd-vllm.{SUFFIX}"
    assert full_name("qmd-embed", Laptop()) == ""


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, ""),
        ({"HTTPS_PROXY": "http://p:1"}, f"NO_PROXY=.{SUFFIX}"),
        ({"https_proxy": "http://p:1", "no_proxy": "localhost, .ts.net"}, ""),
        ({"ALL_PROXY": "socks5://p:1", "NO_PROXY": "*"}, ""),
        ({"NO_PROXY": "x"}, ""),
    ],
)
def test_a_proxy_in_the_environment_is_told_of(environment: dict[str, str], said: str) -> None:
    note = proxy_note(Names(f"https://qmd-embed.{SUFFIX}", f"https://qmd-vllm.{SUFFIX}"), environment)
    assert said in note and bool(note) == bool(said)
