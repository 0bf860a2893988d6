"""Which names a browser may use, and which pages may use a browser."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.datastructures import Headers

from embed_service.errors import Forbidden, Misdirected, ServiceError, SettingsError
from embed_service.routes.hosts import HostMiddleware, KnownHosts, from_another_site, host_of
from embed_service.routes.peers import TrustedPeers
from embed_service.settings import load_settings

CHROMIUM = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36"
SDKS = (
    "OpenAI/Python 3.54.0",
    "python-httpx/0.28.1",
    "node",
    "undici",
    "Bun/1.2",
    "curl/8.14.1",
    "Prometheus/2.53",
    "Go-http-client/1.1",
    "",
)


@pytest.mark.parametrize(
    ("header", "host"),
    [
        ("embed:8001", "embed"),
        ("QMD-Embed.Tail1234.TS.net", "qmd-embed.tail1234.ts.net"),
        ("qmd-embed.tail1234.ts.net.:443", "qmd-embed.tail1234.ts.net"),
        ("127.0.0.1:8001", "127.0.0.1"),
        ("[fd7a:115c::1]:8001", "fd7a:115c::1"),
        ("[::1]", "::1"),
        ("evil.example:80:80", "evil.example:80"),
        ("evil.example:x", "evil.example:x"),
        ("", ""),
    ],
)
def test_the_host_of_a_header(header: str, host: str) -> None:
    assert host_of(header) == host


KNOWN = (
    "127.0.0.1", "::1", "fd7a:115c:a1e0::1", "fe80::1%eth0", "192.168.1.20", "localhost", "app.localhost", "embed", "qmd-embed", "vllm",
    "gpubox", "gpubox.local", "gpu.home.arpa", "gpu.internal", "qmd-embed.tail1234.ts.net", "box.corp.example", "",
)  # fmt: skip
UNKNOWN = (
    "evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "ts.net.evil.example", "notts.net.example", "evilts.net", "1.2.3",
    "127.1", "0x7f.1", "::1.evil.example", "evil.local.example", "embed.evil.example", "evil.example:80",
)  # fmt: skip


@pytest.mark.parametrize("host", KNOWN)
def test_known_without_a_setting(host: str) -> None:
    assert KnownHosts((), own_name="box.corp.example").knows(host)


@pytest.mark.parametrize("host", UNKNOWN)
def test_unknown_without_a_setting(host: str) -> None:
    assert not KnownHosts((), own_name="box.corp.example").knows(host)


def test_what_the_owner_allows() -> None:
    known = KnownHosts(("GPU.example.com", "*.tail.example.org"), own_name="box")
    assert known.knows("gpu.example.com") and known.knows("qmd-embed.tail.example.org")
    for host in ("tail.example.org", "a.gpu.example.com", "eviltail.example.org", "evil.example"):
        assert not known.knows(host)
    assert KnownHosts(("*",)).knows("evil.example")


@pytest.mark.parametrize(
    "value", ["http://gpu.example.com", "gpu.example.com:8001", "gpu.example.com/", "*.*.com", "gpu*.com", "a b", "*."]
)
def test_a_setting_that_is_no_host_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("ALLOWED_HOSTS", f"embed,{value}")
    with pytest.raises(SettingsError, match=r"ALLOWED_HOSTS.*without scheme, port and path"):
        load_settings()


def answer(
    headers: dict[str, str], *, path: str = "/v1/rerank", method: str = "POST", peer: str = "127.0.0.1",
    allowed: tuple[str, ...] = (), sidecars: tuple[str, ...] = (),
) -> ServiceError | None:  # fmt: skip
    """What the layer raises; None where it lets the request through."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        pass

    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": path, "client": (peer, 5000), "headers": raw}
    layer = HostMiddleware(app, KnownHosts(allowed, own_name="box"), TrustedPeers(sidecars))
    try:
        asyncio.run(layer(scope, None, None))  # type: ignore[arg-type]
    except ServiceError as error:
        return error
    return None


@pytest.mark.parametrize("agent", SDKS)
@pytest.mark.parametrize("host", ["embed.tail.example.org", "gpu.example.com:8443", "evil.example"])
def test_a_client_that_is_no_browser_is_answered_under_any_name(agent: str, host: str) -> None:
    """A control server's own domain, a reverse proxy, a name in /etc/hosts. Node's fetch says Sec-Fetch-Mode, as a browser would."""
    for path, method in (
        ("/v1/rerank", "POST"),
        ("/v1/embeddings", "POST"),
        ("/health", "GET"),
        ("/v1/models", "GET"),
        ("/metrics", "GET"),
    ):
        headers = {"Host": host, "User-Agent": agent, "Sec-Fetch-Mode": "cors", "Accept-Language": "*"}
        assert answer(headers, path=path, method=method) is None
    without = {"User-Agent": agent}  # HTTP/1.0
    assert answer(without) is None and answer(without, path="/stats", method="GET") is None


@pytest.mark.parametrize("path", ["/", "/health", "/v1/models", "/metrics", "/stats", "/docs", "/page/page.js", "/openapi.json", "/other"])
def test_a_browser_under_an_unknown_name_is_refused(path: str) -> None:
    error = answer({"Host": "evil.example:8001", "User-Agent": CHROMIUM}, path=path, method="GET")
    assert isinstance(error, Misdirected)
    assert "evil.example" in error.message and "ALLOWED_HOSTS" in error.message


@pytest.mark.parametrize("agent", [CHROMIUM, "forged"])
def test_a_page_whose_name_was_bound_anew_cannot_compute_whatever_it_calls_itself(agent: str) -> None:
    """A script may set User-Agent in some browsers, but never take Origin out of a POST."""
    for origin in ("http://evil.example:8001", "null"):
        error = answer({"Host": "evil.example:8001", "User-Agent": agent, "Origin": origin})
        assert isinstance(error, Misdirected)
    for path in ("/stats", "/docs", "/page/page.js"):
        assert isinstance(answer({"Host": "evil.example:8001", "User-Agent": agent}, path=path, method="GET"), Misdirected)


def test_a_second_host_header_does_not_hide_the_first() -> None:
    raw = [(b"host", b"evil.example"), (b"host", b"embed"), (b"origin", b"http://evil.example")]
    scope = {"type": "http", "method": "GET", "path": "/", "client": ("127.0.0.1", 1), "headers": raw}
    layer = HostMiddleware(None, KnownHosts(()), TrustedPeers(()))  # type: ignore[arg-type]
    with pytest.raises(Misdirected):
        asyncio.run(layer(scope, None, None))  # type: ignore[arg-type]


def test_a_sidecar_s_name_is_known_whatever_it_is() -> None:
    """It has a certificate for its own name alone. An address of this machine is nobody's word: any program could come from there."""
    headers = {"Host": "qmd-embed.tail.example.org", "User-Agent": CHROMIUM}
    assert answer(headers, path="/", method="GET", peer="172.20.0.3", sidecars=("172.20.0.3",)) is None
    for peer, sidecars in (
        ("172.20.0.9", ("172.20.0.3",)),
        ("127.0.0.1", ("127.0.0.1",)),
        ("172.20.0.3", ()),
        ("testclient", ("172.20.0.3",)),
    ):
        assert isinstance(answer(headers, path="/", method="GET", peer=peer, sidecars=sidecars), Misdirected)


SAME = {"Host": "127.0.0.1:8001", "User-Agent": CHROMIUM}


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://127.0.0.1:8001", "Sec-Fetch-Site": "same-origin"},
        {"Origin": "https://embed.example.com", "Sec-Fetch-Site": "same-origin"},  # behind a proxy that gives its own Host
        {"Sec-Fetch-Site": "none"},
        {"Origin": "http://127.0.0.1:8001"},  # a browser that does not say more, as on plain HTTP
        {"Origin": "chrome-extension://abcdef", "Sec-Fetch-Site": "none"},
        {"Origin": "app://obsidian.md", "Sec-Fetch-Site": "cross-site"},
        {"Origin": "vscode-webview://1a2b"},
    ],
)
def test_our_own_page_and_programs_may_compute(headers: dict[str, str]) -> None:
    assert answer({**SAME, **headers}) is None


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"},
        {"Origin": "http://localhost:3000", "Sec-Fetch-Site": "same-site"},
        {"Origin": "null", "Sec-Fetch-Site": "cross-site"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": "http://127.0.0.1:9000"},
        {"Origin": "http://evil.example"},
        {"Origin": "http://evil.example:x"},
    ],
)
def test_pages_of_other_sites_may_not(headers: dict[str, str]) -> None:
    error = answer({**SAME, **headers})
    assert isinstance(error, Forbidden) and error.code == "cross_origin"
    assert answer({**SAME, **headers}, path="/", method="GET") is None, "a link from elsewhere leads here"


def test_an_origin_that_the_owner_allows_may_compute() -> None:
    headers = Headers({**SAME, "Origin": "https://notes.example.com:8443", "Sec-Fetch-Site": "cross-site"})
    assert from_another_site(headers, KnownHosts(())) == "https://notes.example.com:8443"
    assert from_another_site(headers, KnownHosts(("notes.example.com",))) is None
    assert from_another_site(Headers({**SAME, "Origin": "https://box:443", "Host": "box"}), KnownHosts(())) is None
