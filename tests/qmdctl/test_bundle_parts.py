"""The parts of a bundle and its archive: what fails is a line of the manifest, and nothing passes redaction by."""

from __future__ import annotations

import json
import os
import stat
import sys
import tarfile
from pathlib import Path

import pytest

from qmdctl.bundle import archive
from qmdctl.bundle.archive import safe_name, write_archive
from qmdctl.bundle.parts import PART_BYTES, Collected, Failed, Part, collect, command, file
from qmdctl.bundle.stack import shortened
from qmdctl.errors import ConfigurationError
from qmdctl.redaction.known import Redactor
from tests.qmdctl.leaks import contents

SECRET = "the-secret-of-it"


def part(name: str, content: bytes) -> Collected:
    return collect(Part(name, "a test", lambda: content))


def test_a_program_that_fails_or_hangs_or_is_not_there() -> None:
    failed = collect(command("a", [sys.executable, "-c", "print('said before'); raise SystemExit(3)"]))
    assert (failed.failed, failed.content) == ("exit status 3", b"said before\n")
    slow = collect(command("b", [sys.executable, "-c", "input() or print(1); import time; time.sleep(60)"], seconds=0.2))
    assert slow.failed
    missing = collect(command("c", ["no-such-program-here"]))
    assert "cannot be run" in missing.failed
    finding = collect(command("d", [sys.executable, "-c", "print('{}'); raise SystemExit(1)"], any_status=True))
    assert (finding.failed, finding.content) == ("", b"{}\n")


def test_anything_that_goes_wrong_is_a_line(tmp_path: Path) -> None:
    def wrong() -> bytes:
        raise RuntimeError("odd")

    assert collect(Part("x", "", wrong)).failed == "RuntimeError: odd"
    assert collect(file("x", tmp_path / "not-there")).failed == "not-there: No such file or directory"


def test_both_streams_of_a_log_in_their_order() -> None:
    script = "import sys; print('2026-01-01T00:00:02Z out'); print('2026-01-01T00:00:01Z err', file=sys.stderr)"
    lines = collect(command("log", [sys.executable, "-c", script], timestamps=True)).content.decode().splitlines()
    assert [line[-3:] for line in lines] == ["err", "out"]


def test_the_end_of_what_is_long_is_kept(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"first line\n" * 200_000 + b"last line\n")
    for one in (part("x", (tmp_path / "big").read_bytes()), collect(file("x", tmp_path / "big"))):
        assert len(one.content) <= PART_BYTES + 100
        assert one.content.endswith(b"last line\n")


def test_every_part_and_every_name_is_redacted(tmp_path: Path) -> None:
    path = tmp_path / "b.tar.gz"
    collected = [
        part(f"logs/{SECRET}.txt", f"x {SECRET}".encode()),
        part("empty.txt", b""),
        Collected(Part("f", f"cat {SECRET}", bytes), b"", SECRET),
    ]
    members = write_archive(path, collected, [f"note {SECRET}"], Redactor([SECRET]))
    files = contents(path)
    assert SECRET not in repr(files) + repr(members)
    assert list(files) == [name for name, _ in members] == ["manifest.txt", "logs/_redacted_.txt", "empty.txt"]
    assert "f: FAILED: [redacted]" in files["manifest.txt"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_names_stay_within_the_archive(tmp_path: Path) -> None:
    assert safe_name("../../etc/passwd") == "_/_/etc/passwd"
    assert safe_name("/a//b\n\x00:c") == "a/b___c"
    assert safe_name("") == "_"
    write_archive(tmp_path / "b.tar.gz", [part("../x", b"1"), part("a", b"2"), part("a", b"3")], [], Redactor())
    with tarfile.open(tmp_path / "b.tar.gz") as opened:
        names = opened.getnames()
    assert len(set(names)) == len(names) == 4
    assert all(name.startswith("b/") and ".." not in name for name in names)


def test_half_an_archive_is_never_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(archive.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_archive(tmp_path / "b.tar.gz", [part("a", b"1")], [], Redactor())
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_links_and_a_name_that_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = tmp_path / "taken.tar.gz"
    taken.write_text("mine")
    with pytest.raises(ConfigurationError, match="is there already"):
        write_archive(taken, [], [], Redactor())
    assert taken.read_text() == "mine"

    def unsupported(*arguments: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", unsupported)
    write_archive(tmp_path / "b.tar.gz", [part("a", b"1")], [], Redactor())
    assert sorted(file.name for file in tmp_path.iterdir()) == ["b.tar.gz", "taken.tar.gz"]


def test_of_a_tailnet_only_the_node_itself() -> None:
    status = {
        "Version": "1.102.3",
        "BackendState": "Running",
        "AuthURL": "https://login.tailscale.com/a/abc",
        "Health": ["no derp"],
        "Self": {"HostName": "qmd-embed", "DNSName": "qmd-embed.tail1.ts.net.", "UserID": 7, "PublicKey": "nodekey:1", "Online": True},
        "Peer": {"nodekey:2": {"HostName": "annas-phone"}},
        "User": {"7": {"LoginName": "anna@example.com"}},
    }
    kept = json.loads(shortened(json.dumps(status)))
    assert kept["Self"] == {"HostName": "qmd-embed", "DNSName": "qmd-embed.tail1.ts.net.", "Online": True}
    assert kept["Health"] == ["no derp"]
    assert kept["Peers"] == "1 left out"
    assert not {"User", "AuthURL", "Peer"} & set(kept)
    with pytest.raises(Failed, match="did not answer"):
        shortened("", "no tailscaled")
