"""Finding the two names: by the tailscale of this machine, a FAKE one here, and by what is given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qmdctl.errors import ConfigurationError, MissingError
from qmdctl.laptop.names import NotFound, choose_names, find_name, url_of
from qmdctl.laptop.path import path_to
from qmdctl.laptop.tailscale import Tailnet, parse, read_tailnet
from tests.qmdctl.conftest import Run
from tests.support.laptop import SUFFIX, fake_tailscale, node, status

EMBED, VLLM = node("qmd-embed", "100.64.0.1"), node("qmd-vllm", "100.64.0.2")


def tailnet(*peers: dict[str, Any], **more: Any) -> Tailnet:
    return parse("tailscale", status(*peers, **more))


def nothing(name: str) -> list[str]:
    return []


def test_both_names_are_found() -> None:
    names = choose_names(None, None, look=lambda: tailnet(EMBED, VLLM), resolve=nothing)
    assert (names.embed, names.generate) == (f"https://qmd-embed.{SUFFIX}", f"https://qmd-vllm.{SUFFIX}")
    assert set(names.origins.values()) == {"found on the tailnet"}
    assert names.notes == []


def test_host_names_of_a_project_are_looked_for() -> None:
    names = choose_names(
        None,
        None,
        {"embed": "box-embed", "vllm": "box-vllm"},
        look=lambda: tailnet(EMBED, node("box-embed", "100.64.0.3")),
        resolve=nothing,
    )
    assert names.embed == f"https://box-embed.{SUFFIX}"
    assert names.generate == ""
    assert "single-URL mode" in names.notes[0] and "box-vllm" in names.notes[0]


def test_a_node_registered_twice() -> None:
    old = node("qmd-embed", "100.64.0.1", online=False, LastSeen="2026-11-01T10:00:00Z")
    found = find_name(tailnet(old, node("qmd-embed-1", "100.64.0.4", HostName="qmd-embed")), "qmd-embed", nothing)
    assert found.name == f"qmd-embed-1.{SUFFIX}"
    assert "registered twice" in found.note and "2026-11-01" in found.note and "rename qmd-embed-1 to qmd-embed" in found.note
    both = find_name(tailnet(EMBED, node("qmd-embed-1", "100.64.0.4")), "qmd-embed", nothing)
    assert both.name == f"qmd-embed.{SUFFIX}"
    assert "alive as well" in both.note
    alone = find_name(tailnet(node("qmd-embed-1", "100.64.0.4")), "qmd-embed", nothing)
    assert alone.name == f"qmd-embed-1.{SUFFIX}"
    assert "rename" in alone.note


@pytest.mark.parametrize(
    ("old", "new", "used"),
    [
        ({}, {"UserID": 2}, "qmd-embed"),
        ({"UserID": 0}, {"UserID": 0}, "qmd-embed"),
        ({"Tags": ["tag:qmd"]}, {}, "qmd-embed"),
        ({"Tags": ["tag:qmd"]}, {"Tags": ["tag:other"]}, "qmd-embed"),
        ({"Tags": ["tag:qmd"], "UserID": 1}, {"Tags": ["tag:qmd"], "UserID": 2}, "qmd-embed-1"),
    ],
)
def test_a_number_behind_the_name_is_believed_of_the_same_owner_alone(old: dict[str, Any], new: dict[str, Any], used: str) -> None:
    offline = node("qmd-embed", "100.64.0.1", online=False, **old)
    found = find_name(tailnet(offline, node("qmd-embed-1", "100.64.0.4", **new)), "qmd-embed", nothing)
    assert found.name == f"{used}.{SUFFIX}"
    assert found.twin == (used != "qmd-embed") == ("another owner" not in found.note)


def test_another_tailnets_node_is_told_of() -> None:
    shared = node("qmd-embed", "100.64.0.5", DNSName="qmd-embed.other.ts.net.")
    names = choose_names(None, None, look=lambda: tailnet(shared, VLLM), resolve=nothing)
    assert ["qmd-embed.other.ts.net is of another tailnet" in note for note in names.notes] == [True]


def test_a_node_that_is_offline_is_named_and_said_to_be() -> None:
    found = find_name(tailnet(node("qmd-embed", "100.64.0.1", online=False)), "qmd-embed", nothing)
    assert found.name == f"qmd-embed.{SUFFIX}"
    assert "offline" in found.note


def test_a_service_resolves_though_no_node_has_the_name() -> None:
    asked = []

    def resolve(name: str) -> list[str]:
        asked.append(name)
        return ["100.100.7.7"]

    found = find_name(tailnet(node("qmd-embed-box1", "100.64.0.1")), "qmd-embed", resolve)
    assert found.name == f"qmd-embed.{SUFFIX}" == asked[0]
    assert "Tailscale Service" in found.note


def test_a_renamed_node_and_one_shared_from_another_tailnet() -> None:
    assert find_name(tailnet(node("gpu-box", "100.64.0.1", HostName="qmd-embed")), "qmd-embed", nothing).name == f"gpu-box.{SUFFIX}"
    shared = node("qmd-embed", "100.64.0.5", DNSName="qmd-embed.other.ts.net.")
    assert find_name(tailnet(shared), "qmd-embed", nothing).name == "qmd-embed.other.ts.net"
    assert find_name(tailnet(shared, EMBED), "qmd-embed", nothing).name == f"qmd-embed.{SUFFIX}"


def test_no_such_node_names_those_that_come_near_and_what_may_be_wrong() -> None:
    with pytest.raises(NotFound) as caught:
        find_name(tailnet(node("embedder", "100.64.0.1"), node("printer", "100.64.0.2")), "qmd-embed", nothing)
    assert f"embedder.{SUFFIX}" in caught.value.message and "printer" not in caught.value.message
    assert "policy" in caught.value.fix and "--embed-url" in caught.value.fix


def test_a_given_address_keeps_the_other_one_honest() -> None:
    names = choose_names("https://elsewhere.example/v1/", None, look=lambda: tailnet(EMBED, VLLM), resolve=nothing)
    assert (names.embed, names.generate) == ("https://elsewhere.example", f"https://qmd-vllm.{SUFFIX}")
    assert names.origins == {"embed": "given", "vllm": "found on the tailnet"}

    def none() -> Tailnet:
        raise MissingError("There is no tailscale command on this machine", "install it")

    names = choose_names("https://elsewhere.example", None, look=none, resolve=nothing)
    assert (names.generate, names.generation) == ("", "https://elsewhere.example")
    assert "single-URL mode" in names.notes[0] and "no tailscale command" in names.notes[0]
    with pytest.raises(MissingError):
        choose_names(None, "https://elsewhere.example", look=none, resolve=nothing)
    local = choose_names("http://127.0.0.1:8001", None, look=lambda: tailnet(EMBED, VLLM), resolve=nothing)
    assert local.generate == ""
    assert "is this machine" in local.notes[0]
    one = choose_names("https://a.example", "https://a.example/", look=none, resolve=nothing)
    assert one.generate == ""


def test_the_sidecars_of_a_project_come_before_the_search() -> None:
    box = {"embed": f"qmd-embed-2.{SUFFIX}", "vllm": f"qmd-vllm-2.{SUFFIX}"}
    names = choose_names(None, None, box=box, look=lambda: pytest.fail("not asked"), resolve=nothing)
    assert names.embed == f"https://qmd-embed-2.{SUFFIX}"
    assert names.origins["vllm"] == "its sidecar here"


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("qmd-embed.x.ts.net", "https://qmd-embed.x.ts.net"),
        ("https://QMD-embed.x.ts.net./", "https://qmd-embed.x.ts.net"),
        ("https://qmd-embed.x.ts.net/v1/", "https://qmd-embed.x.ts.net"),
        ("http://127.0.0.1:8001/v1", "http://127.0.0.1:8001"),
        ("http://[fd7a:115c:a1e0::1]:80", "http://[fd7a:115c:a1e0::1]:80"),
    ],
)
def test_addresses(text: str, url: str) -> None:
    assert url_of(text, "--embed-url") == url


@pytest.mark.parametrize(
    "text", ["ftp://x", "https://", "https://x/path", "https://x?q=1", "https://u:p@x", "https://x:99999", "https://a b", "https://<x>"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--embed-url"):
        url_of(text, "--embed-url")


@pytest.mark.parametrize(
    ("document", "words", "fix"),
    [
        (status(state="NeedsLogin"), "logged out", "tailscale up"),
        (status(state="Stopped"), "switched off", "tailscale up"),
        (status(state="NeedsMachineAuth"), "approval", "admin/machines"),
        (status(state="NoState"), "NoState", "tailscale status"),
        ("not JSON", "something else", "update"),
        ("[]", "something else", "update"),
        (status(node("printer", "100.64.0.2")), "qmd-embed", "--embed-url"),
    ],
)
def test_each_cause_has_its_sentence(qmdctl: Run, tmp_path: Path, document: Any, words: str, fix: str) -> None:
    path = fake_tailscale(tmp_path / "bin", document)
    for verb in ("test", "client"):
        done = qmdctl(verb, "--json", PATH=path)
        error = json.loads(done.stdout)
        assert done.returncode == error["exit_code"] != 0
        assert words in error["error"] and fix in error["fix"]


def test_without_tailscale_and_with_a_daemon_that_does_not_run(qmdctl: Run, tmp_path: Path) -> None:
    done = qmdctl("test", PATH="/nowhere")
    assert done.returncode == 3
    assert "no tailscale command" in done.stderr and "--embed-url" in done.stderr
    path = fake_tailscale(tmp_path / "bin", "", complaint="failed to connect to local tailscaled; is it running?", exit_status=1)
    done = qmdctl("test", PATH=path)
    assert done.returncode == 3
    assert "failed to connect to local tailscaled" in done.stderr and "systemctl" in done.stderr


def test_a_tailscale_that_is_no_program(qmdctl: Run, tmp_path: Path) -> None:
    path = fake_tailscale(tmp_path / "bin", status(EMBED))
    (tmp_path / "bin/tailscale").write_bytes(b"\0no program\n")
    done = qmdctl("test", PATH=path)
    assert done.returncode == 3
    assert "tailscale cannot be run" in done.stderr


DIRECT = "pong from qmd-embed (100.64.0.1) via DERP(fra) in 38ms\npong from qmd-embed (100.64.0.1) via 192.168.1.7:41651 in 3ms\n"
RELAYED = "pong from qmd-embed (100.64.0.1) via DERP(fra) in 38ms\n" * 3 + "direct connection not established\n"
BY_PEER = "pong from qmd-embed (100.64.0.1) via peer-relay(10.1.1.1:4000:vni:7) in 1.2s\n"


@pytest.mark.parametrize(
    ("pong", "detail", "port"),
    [
        (DIRECT, "1 hop, direct 192.168.1.7:41651, 3 ms", ""),
        (RELAYED, "2 hops, through the relay fra, 38 ms", "41651"),
        (BY_PEER, "2 hops, through the peer relay 10.1.1.1:4000:vni:7, 1.2 s", "41651"),
        ("", "2 hops, through the relay fra, but no ping came back", "41651"),
        ("pong from x (100.64.0.1) via [fd7a::1]:41651 in 0s\n", "1 hop, direct [fd7a::1]:41651, less than 1 ms", ""),
    ],
)
def test_hops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pong: str, detail: str, port: str) -> None:
    monkeypatch.setenv("PATH", fake_tailscale(tmp_path / "bin", status(EMBED), pong))
    read = read_tailnet()
    assert read.version == "1.102.3"
    told, fix = path_to(read, read.peers[0], "41651")
    assert told == detail
    assert (f"open UDP {port}" in fix) if port else fix == ""


def test_hops_without_a_ping_and_to_oneself() -> None:
    read = tailnet(node("qmd-embed", "100.64.0.1", CurAddr="192.168.1.7:41651"), node("idle", "100.64.0.3", Relay=""))
    silent = lambda tailnet, address: None  # noqa: E731
    assert path_to(read, read.peers[1], "41651", silent) == ("1 hop, direct 192.168.1.7:41651, but no ping came back", "")
    assert path_to(read, read.peers[0], "41651", silent)[0].startswith("not known")
    assert read.this is not None
    assert path_to(read, read.this, "41651", silent)[0].startswith("0 hops")
