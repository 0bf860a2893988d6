"""Keys, trusted peers and callers."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from embed_service.routes import peers as peers_module
from embed_service.routes.auth import ApiKeys
from embed_service.routes.peers import TrustedPeers, caller_of


def scope(peer: str | None, **headers: str) -> dict[str, Any]:
    raw = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return {"type": "http", "client": (peer, 5000) if peer else None, "headers": raw}


def test_plain_and_hashed_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    digest = hashlib.sha256(b"second").hexdigest()
    file.write_text(f"# team\nfirst\n\n  sha256:{digest}  \nsha256:nonsense\nsch\u00f6n\n", encoding="utf-8")
    keys = ApiKeys(str(file))
    assert keys.accepts("first")
    assert keys.accepts("second")
    assert keys.accepts("schön".encode().decode("latin-1"))  # as a header's bytes arrive
    for wrong in ("", "# team", digest, f"sha256:{digest}", "sha256:nonsense", "First", "firs"):
        assert not keys.accepts(wrong)


def test_keys_are_read_again_when_the_file_changes(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("old\n")
    keys = ApiKeys(str(file))
    assert keys.accepts("old")
    file.write_text("new\n")
    os.utime(file, ns=(1, 1))
    assert keys.accepts("new")
    assert not keys.accepts("old")
    file.unlink()
    assert not keys.accepts("new")
    file.write_text("again\n")
    assert keys.accepts("again")


def test_a_key_replaced_by_one_of_the_same_length_and_time_is_revoked(tmp_path: Path) -> None:
    file, fresh = tmp_path / "keys", tmp_path / "fresh"
    file.write_text("old1\n")
    os.utime(file, ns=(1, 1))  # as tools do that deploy secrets reproducibly
    keys = ApiKeys(str(file))
    assert keys.accepts("old1")
    fresh.write_text("new1\n")
    os.utime(fresh, ns=(1, 1))
    fresh.replace(file)
    assert keys.accepts("new1")
    assert not keys.accepts("old1")


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_bytes(b"\xef\xbb\xbffirst\r\nsecond\r\n")
    keys = ApiKeys(str(file))
    assert keys.accepts("first")
    assert keys.accepts("second")


def test_a_file_without_keys_lets_nobody_in(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# none yet\n")
    assert not ApiKeys(str(file)).accepts("")
    assert not ApiKeys(str(file)).accepts("# none yet")


@pytest.mark.parametrize(
    ("sidecars", "peer", "trusted"),
    [
        ((), "127.0.0.1", True),
        ((), "::1", True),
        ((), "172.18.0.3", True),
        ((), "::ffff:10.0.0.1", True),
        ((), None, False),
        ((), "8.8.8.8", False),
        ((), "100.100.1.2", False),
        ((), "fd7a:115c:a1e0::1", False),
        ((), "testclient", False),
        (("172.18.0.3",), "172.18.0.3", True),
        (("172.18.0.3",), "172.18.0.4", False),
        (("172.18.0.3",), "127.0.0.1", False),
        (("172.18.0.0/16", "fd00::/8"), "172.18.9.9", True),
        (("172.18.0.0/16", "fd00::/8"), "fd00::5", True),
        (("localhost",), "127.0.0.1", True),
        (("localhost",), "10.0.0.1", False),
        (("localhost", "no-such-sidecar.invalid"), "127.0.0.1", True),
        (("no-such-sidecar.invalid",), "127.0.0.1", False),
        (("a" * 64, "."), "127.0.0.1", False),
        (("172.18.0.3",), None, False),
    ],
)
def test_whose_headers_are_believed(sidecars: tuple[str, ...], peer: str | None, trusted: bool) -> None:
    peers = TrustedPeers(sidecars)
    assert asyncio.run(peers.trusts(scope(peer))) == trusted
    caller = asyncio.run(caller_of(scope(peer, tailscale_user_login="ada@example.com"), peers))
    assert caller == ("ada@example.com" if trusted else peer or "local")
    assert asyncio.run(caller_of(scope(peer), peers)) == (peer or "local")


class Names:
    """FAKE: Docker's name server. `answer` is what the names have now; while `silent` it never answers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **answer: str) -> None:
        self.answer, self.asked, self.silent = answer, [], asyncio.Event()  # type: tuple[dict[str, str], list[str], asyncio.Event]
        self.silent.set()
        monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", self.getaddrinfo)

    async def getaddrinfo(self, name: str, port: object, *, family: int, type: int) -> list[Any]:
        self.asked.append(name)
        if name not in self.answer:
            await self.silent.wait()
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(family, type, 6, "", (self.answer[name], 0))]


def test_a_sidecar_made_anew_is_believed_at_once_and_who_has_its_old_address_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    async def talk() -> None:
        names = Names(monkeypatch, **{"ts-embed": "172.18.0.3"})
        peers = TrustedPeers(("ts-embed",))
        assert await peers.trusts(scope("172.18.0.3"))
        names.answer = {"ts-embed": "172.18.0.5"}
        assert not await peers.trusts(scope("172.18.0.3"))
        assert await peers.trusts(scope("172.18.0.5"))
        names.answer = {}
        assert not await peers.trusts(scope("172.18.0.5"))

    asyncio.run(talk())


def test_a_name_server_that_is_silent_holds_up_only_who_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Docker passes a name that it does not know on, to servers that may be out of reach: nobody is that name, and nobody waits twice."""
    monkeypatch.setattr(peers_module, "RESOLVE_SECONDS", 0.05)

    async def talk() -> None:
        names = Names(monkeypatch, **{"ts-embed": "172.18.0.3"})
        names.silent.clear()
        peers = TrustedPeers(("ts-vllm", "ts-embed"))
        assert await asyncio.wait_for(peers.trusts(scope("172.18.0.3")), 5)
        for _ in range(20):
            assert not await asyncio.wait_for(peers.trusts(scope("172.18.0.4")), 5)
        assert names.asked.count("ts-vllm") == 1
        names.silent.set()

    asyncio.run(talk())


def test_of_several_logins_none_is_believed() -> None:
    raw = [(b"tailscale-user-login", b"ada@example.com"), (b"tailscale-user-login", b"eve@example.com")]
    request = {"type": "http", "client": ("127.0.0.1", 5000), "headers": raw}
    assert asyncio.run(caller_of(request, TrustedPeers(()))) == "127.0.0.1"


def test_a_change_of_the_same_length_within_a_tick_of_the_clock_is_seen(tmp_path: Path) -> None:
    """The file's times come from a coarse clock: two changes may have the same. Without a rest between them the times tell nothing."""
    file = tmp_path / "keys"
    file.write_text("key0\n")
    keys = ApiKeys(str(file))
    for number in range(10):
        with file.open("r+") as out:
            out.write(f"key{number}\n")
        assert keys.accepts(f"key{number}")
