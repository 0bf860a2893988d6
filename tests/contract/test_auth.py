"""Keys and capabilities: who is let in, and how a refusal looks."""

from __future__ import annotations

import hashlib
import json
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.service import ServiceProcess, poll
from tests.support.wire import assert_error

PLAIN, HASHED = "sk-plain-key-of-a-laptop", "sk-key-known-by-its-hash"
DIGEST = hashlib.sha256(HASHED.encode()).hexdigest()
CAPABILITY = "example.com/cap/qmd"
REQUEST = {"input": "one note"}


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("secrets") / "api_keys"
    path.write_text(f"{PLAIN}\n\nsha256:{DIGEST}\n")
    return path


@pytest.fixture(scope="module")
def locked(keys_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    log = tmp_path_factory.mktemp("locked") / "service.log"
    with ServiceProcess({"API_KEYS_FILE": str(keys_file)}, log) as process:
        process.wait_healthy()
        yield process


@pytest.fixture
def visitor(locked: ServiceProcess) -> Iterator[httpx.Client]:
    with locked.client() as client:
        yield client


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.mark.parametrize("key", [PLAIN, HASHED])
def test_a_key_lets_in(visitor: httpx.Client, key: str) -> None:
    assert visitor.post("/v1/embeddings", json=REQUEST, headers=bearer(key)).status_code == 200
    assert visitor.get("/v1/models", headers={"Authorization": f"bearer {key}"}).status_code == 200


@pytest.mark.parametrize(
    "value",
    ["", "Bearer", "Bearer sk-wrong", f"Bearer {PLAIN}x", f"Bearer {PLAIN[:-1]}", f"Basic {PLAIN}", PLAIN, f"Bearer {DIGEST}",
     f"Bearer sha256:{DIGEST}", "Bearer \u00e9"],
)  # fmt: skip
def test_anything_else_is_401(visitor: httpx.Client, value: str) -> None:
    answer = visitor.post("/v1/embeddings", json=REQUEST, headers={"authorization": value.encode()} if value else {})
    error = assert_error(answer, 401)
    assert "bearer" in answer.headers["www-authenticate"].lower()
    assert PLAIN not in error["message"]


CLOSED = [
    ("POST", "/v1/embeddings"), ("POST", "/embeddings/"), ("POST", "/rerank"), ("POST", "/v1/v1/rerank"), ("POST", "/v2/rerank"),
    ("POST", "/reranks"), ("POST", "/v1/score"), ("POST", "/tokenize"), ("POST", "/detokenize"), ("GET", "/v1/models"), ("GET", "/models"),
    ("GET", "/version"), ("GET", "/metrics"), ("GET", "/metrics/"), ("GET", "/openapi.json"), ("GET", "/stats"), ("GET", "/stats/?after=1"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"), ("GET", "/v1/embeddings"), ("GET", "/no-such-path"), ("GET",
    "/health/../metrics"), ("GET", "//metrics"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), CLOSED)
def test_every_other_path_is_closed(visitor: httpx.Client, method: str, path: str) -> None:
    url = f"{visitor.base_url}".rstrip("/") + path  # as it stands: //metrics would be read as a host
    assert_error(visitor.request(method, url, json=REQUEST if method == "POST" else None), 401)


@pytest.mark.parametrize("path", ["/health", "/health/", "/livez", "/", "/docs", "/page/page.css", "/page/page.js", "/page/clients.json"])
def test_health_livez_and_the_pages_are_open(visitor: httpx.Client, path: str) -> None:
    assert visitor.get(path).status_code == 200


def test_keys_are_read_again_when_their_file_changes(locked: ServiceProcess, keys_file: Path) -> None:
    before = keys_file.read_text()

    def status(key: str) -> int:
        with locked.client() as client:
            return client.get("/version", headers=bearer(key)).status_code

    try:
        keys_file.write_text("sk-new\n")
        poll(lambda: status("sk-new") == 200, 15, "the new key")
        assert status(PLAIN) == 401
        assert status(HASHED) == 401
        fresh = keys_file.with_suffix(".fresh")  # as an editor or a secret's update does it
        fresh.write_text(before)
        fresh.replace(keys_file)
        poll(lambda: status(PLAIN) == 200, 15, "the old key")
        assert status("sk-new") == 401
    finally:
        keys_file.write_text(before)


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """Asks for a capability; believes 127.0.0.1's Tailscale headers as it would a sidecar's."""
    log = tmp_path_factory.mktemp("gated") / "service.log"
    with ServiceProcess({"REQUIRE_CAPABILITY": CAPABILITY, "TRUSTED_SIDECARS": "127.0.0.1"}, log) as process:
        process.wait_healthy()
        yield process


def granted(*names: str) -> dict[str, str]:
    return {"Tailscale-App-Capabilities": json.dumps({name: [{"use": True}] for name in names}), "Tailscale-User-Login": "ann@example.com"}


def test_a_caller_with_the_capability_is_let_in(gated: ServiceProcess) -> None:
    with gated.client(headers=granted("example.com/cap/other", CAPABILITY)) as client:
        assert client.post("/v1/embeddings", json=REQUEST).status_code == 200


@pytest.mark.parametrize(
    "value",
    [
        f'=?utf-8?q?{{"{CAPABILITY}":[{{"who":"B=C3=BCro"}}]}}?=',
        f'=?utf-8?q?{{"{CAPABILITY}":[{{"who":"B=C3=BC?= =?utf-8?q?ro_of_Zo=C3=AB"}}]}}?=',
    ],
)
def test_a_grant_with_other_letters_than_ascii_is_read(gated: ServiceProcess, value: str) -> None:
    """Tailscale writes such a header as RFC 2047's encoded words (encTailscaleHeaderValue in its ipn/ipnlocal/serve.go)."""
    with gated.client(headers={"Tailscale-App-Capabilities": value}) as client:
        assert client.get("/v1/models").status_code == 200
    with gated.client(headers={"Tailscale-App-Capabilities": value.replace(CAPABILITY, "example.com/cap/other")}) as client:
        assert_error(client.get("/v1/models"), 403, CAPABILITY)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        granted("example.com/cap/other"),
        granted(),
        {"Tailscale-App-Capabilities": "not json"},
        {"Tailscale-App-Capabilities": f'["{CAPABILITY}"]'},
        {"Tailscale-App-Capabilities": "=?utf-8?b?x?="},
        {"Tailscale-App-Capabilities": "=?no-such-charset?q?=C3?="},
        {"Tailscale-App-Capabilities": "=?utf-8?q?=FF?="},
    ],
    ids=["none", "another", "empty", "no JSON", "a list", "bad base64", "unknown charset", "bad UTF-8"],
)
def test_a_caller_without_it_gets_403_that_names_it(gated: ServiceProcess, headers: dict[str, str]) -> None:
    with gated.client(headers=headers) as client:
        assert_error(client.post("/v1/embeddings", json=REQUEST), 403, CAPABILITY)
        assert client.get("/health").status_code == 200
        assert client.get("/livez").status_code == 200


@pytest.mark.parametrize("value", ["[]", "null", '[{"role":"user"},{"role":"admin"}]'])
def test_the_presence_of_the_capability_counts(gated: ServiceProcess, value: str) -> None:
    """A grant without values is one: PeerCapMap.HasCapability in Tailscale's tailcfg.go."""
    with gated.client(headers={"tailscale-app-CAPABILITIES": f'{{"{CAPABILITY}":{value}}}'}) as client:
        assert client.get("/v1/models").status_code == 200


@pytest.mark.parametrize("value", ["false", "0", "{}", '"yes"'])
def test_what_serve_never_writes_is_no_grant(gated: ServiceProcess, value: str) -> None:
    with gated.client(headers={"Tailscale-App-Capabilities": f'{{"{CAPABILITY}":{value}}}'}) as client:
        assert_error(client.get("/v1/models"), 403, CAPABILITY)


@pytest.mark.parametrize("names", [("Tailscale-App-Capabilities", "tailscale-app-capabilities"), ("Tailscale-App-Capabilities",) * 2])
def test_a_second_copy_of_the_header_is_not_believed(gated: ServiceProcess, names: tuple[str, str]) -> None:
    """`serve` sets it once, so another layer added one of them."""
    forged = [(names[0], json.dumps({CAPABILITY: [{}]})), (names[1], "{}")]
    for headers in (forged, forged[::-1]):
        with gated.client(headers=headers) as client:
            assert_error(client.get("/v1/models"), 403, CAPABILITY)


@pytest.mark.parametrize("name", ["Tailscale_App_Capabilities", "X-Tailscale-App-Capabilities", "Tailscale-User-Capabilities"])
def test_a_name_that_only_looks_like_it_is_another_header(gated: ServiceProcess, name: str) -> None:
    with gated.client(headers={name: json.dumps({CAPABILITY: [{}]})}) as client:
        assert_error(client.get("/v1/models"), 403, CAPABILITY)


FUNNEL = {"Tailscale-Funnel-Request": "?1"}
EVERY_PATH = [
    *CLOSED,
    ("GET", "/health"),
    ("GET", "/health/"),
    ("HEAD", "/health"),
    ("GET", "/livez"),
    ("GET", "/"),
    ("GET", "/docs"),
    ("GET", "/page/page.js"),
]


@pytest.mark.parametrize(("method", "path"), EVERY_PATH)
def test_what_came_through_funnel_is_refused_on_every_path(locked: ServiceProcess, method: str, path: str) -> None:
    with locked.client(headers={**FUNNEL, **bearer(PLAIN)}) as client:
        answer = client.request(method, locked.url + path)
    assert answer.status_code == 403
    if method != "HEAD":
        assert assert_error(answer, 403, "Funnel")["code"] == "funnel"


@pytest.mark.parametrize("header", [FUNNEL, {"tailscale-funnel-request": ""}, {"Tailscale-Funnel-Request": "?0"}])
def test_funnel_is_refused_whatever_the_settings(service: ServiceProcess, gated: ServiceProcess, header: dict[str, str]) -> None:
    for process in (service, gated):
        with process.client(headers={**granted(CAPABILITY), **header}) as client:
            for path in ("/health", "/v1/models"):
                assert_error(client.get(path), 403, "Funnel")


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """As compose.yaml has it: two names, of which one has no container; localhost stands for the other."""
    log = tmp_path_factory.mktemp("named") / "service.log"
    with ServiceProcess({"REQUIRE_CAPABILITY": CAPABILITY, "TRUSTED_SIDECARS": "ts-vllm.invalid,localhost"}, log) as process:
        process.wait_healthy()
        yield process


def test_a_sidecar_is_known_by_its_name_and_one_without_a_container_is_nobody(named: ServiceProcess) -> None:
    with named.client(headers=granted(CAPABILITY)) as client:
        assert client.get("/v1/models").status_code == 200
    with named.client(headers=granted(CAPABILITY), transport=httpx.HTTPTransport(local_address="127.0.0.2")) as client:
        assert_error(client.get("/v1/models"), 403, CAPABILITY)


def test_a_connection_that_is_reset_at_once_is_nobodys(gated: ServiceProcess) -> None:
    """Its address can no longer be asked for when it is looked at. The answer reaches nobody, so the log tells what it was."""
    head = (
        f"GET /version HTTP/1.1\r\nHost: x\r\nX-Request-Id: reset-%d\r\nTailscale-App-Capabilities: {json.dumps({CAPABILITY: []})}\r\n\r\n"
    )
    for number in range(50):
        # From an address that is not the sidecar's: refused, with or without a name for it.
        with socket.create_connection(("127.0.0.1", gated.port), source_address=("127.0.0.3", 0)) as reset:
            reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            reset.sendall((head % number).encode())
    with gated.client(headers={"X-Request-Id": "last"}) as client:
        client.get("/version")
    poll(lambda: '"last"' in gated.log.read_text(), 15, "the log")
    lines = [json.loads(line) for line in gated.log.read_text().splitlines() if '"reset-' in line]
    assert {line["status"] for line in lines} <= {403}


def test_headers_of_anybody_but_the_sidecar_are_not_believed(gated: ServiceProcess) -> None:
    with gated.client(headers=granted(CAPABILITY), transport=httpx.HTTPTransport(local_address="127.0.0.2")) as client:
        assert_error(client.post("/v1/embeddings", json=REQUEST), 403)
