"""`qmdctl keys` and the file of keys; against a real service the changes take effect without a restart."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from demo.processes import ROOT
from embed_service.routes.auth import ApiKeys
from qmdctl import api_keys
from qmdctl.commands.health import api_key
from qmdctl.commands.keys import switch_on
from qmdctl.errors import ConfigurationError
from tests.qmdctl.conftest import Run
from tests.qmdctl.contexts import NoEngine, machine, one
from tests.qmdctl.projects import settings_of
from tests.qmdctl.test_init import OTHER, converse, other_user
from tests.support.service import ServiceProcess


def keys_path(folder: Path) -> Path:
    return folder / "secrets/api_keys"


@pytest.fixture
def locked(folder: Path) -> Path:
    """A project whose .env names the file of keys."""
    (folder / ".env").write_text("API_KEYS_FILE=./secrets/api_keys\nQMD_UID=1234\nQMD_GID=1235\n")
    return folder


def accepts(path: Path, key: str) -> bool:
    """Whether the service would."""
    return ApiKeys(str(path)).accepts(key)


def test_a_key_is_printed_alone_and_stored_as_its_digest(qmdctl: Run, locked: Path) -> None:
    done = qmdctl("-C", str(locked), "keys", "add", "ann-laptop")
    assert done.returncode == 0, done.stderr
    key = done.stdout.removesuffix("\n")
    assert re.fullmatch(r"qmd_[A-Za-z0-9_-]{43}", key)
    assert key not in done.stderr
    path = keys_path(locked)
    digest = hashlib.sha256(key.encode()).hexdigest()
    assert re.fullmatch(rf"# ann-laptop \d{{4}}-\d\d-\d\d\nsha256:{digest}\n", path.read_text())
    assert path.stat().st_mode & 0o777 == 0o600
    assert accepts(path, key)
    if os.geteuid() == 0:
        assert (path.stat().st_uid, path.stat().st_gid) == (1234, 1235), "the containers' user has to read it"


def test_list_and_revoke(qmdctl: Run, locked: Path) -> None:
    added = [json.loads(qmdctl("-C", str(locked), "keys", "add", name, "--json").stdout) for name in ("ann", "ben")]
    assert [(one["name"], one["in_force"]) for one in added] == [("ann", True), ("ben", True)]
    path = keys_path(locked)
    inode = path.stat().st_ino
    listed = qmdctl("-C", str(locked), "keys", "list")
    assert [line.split()[0] for line in listed.stdout.splitlines()] == ["name", "ann", "ben"]
    assert not any(one["key"] in listed.stdout + listed.stderr for one in added)
    done = qmdctl("-C", str(locked), "keys", "revoke", "ann")
    assert (done.returncode, done.stdout) == (0, "Revoked: ann. 1 left.\n")
    assert not accepts(path, added[0]["key"])
    assert accepts(path, added[1]["key"])
    assert path.stat().st_ino == inode, "the container has this very file"
    last = qmdctl("-C", str(locked), "keys", "revoke", "ben", "--json")
    assert json.loads(last.stdout)["left"] == 0
    assert "nobody gets in now" in last.stderr
    assert [one["name"] for one in json.loads(qmdctl("-C", str(locked), "keys", "list", "--json").stdout)["keys"]] == []
    assert qmdctl("-C", str(locked), "keys", "add", "ann").returncode == 0, "a revoked name is free again"


def test_keys_from_before_are_listed_and_can_be_revoked(qmdctl: Run, locked: Path) -> None:
    path = keys_path(locked)
    path.parent.mkdir()
    hashed = hashlib.sha256(b"third").hexdigest()
    path.write_bytes(b"\xef\xbb\xbffirst-key-in-clear-of-before\r\n# a team\r\n\r\n  sch\xc3\xb6n \r\nsha256:" + hashed.upper().encode())
    answer = json.loads(qmdctl("-C", str(locked), "keys", "list", "--json").stdout)
    assert [(one["name"], one["plain"]) for one in answer["keys"]] == [(None, True), (None, True), (None, False)]
    new = qmdctl("-C", str(locked), "keys", "add", "new").stdout.strip()
    for secret in ("first-key-in-clear-of-before", "schön", "third", new):
        assert accepts(path, secret.encode().decode("latin-1"))  # as a header's bytes arrive
    shown = [f"sha256:{hashlib.sha256(text.encode()).hexdigest()[:12]}…" for text in ("first-key-in-clear-of-before", "schön", "third")]
    assert all(text in qmdctl("-C", str(locked), "keys", "list").stdout for text in shown)
    size = path.stat().st_size
    for text, secret in zip(shown, ("first-key-in-clear-of-before", "schön", "third"), strict=True):
        assert qmdctl("-C", str(locked), "keys", "revoke", text).returncode == 0
        assert not accepts(path, secret.encode().decode("latin-1"))
        assert secret.encode() not in path.read_bytes(), "a key in clear does not stay behind"
        assert accepts(path, new)
    assert path.stat().st_size == size


@pytest.mark.parametrize("name", ["", "-x", "a b", "ä", "a" * 65, "x\ny", "../x", "qmdctl-health"])
def test_names_that_cannot_be(qmdctl: Run, locked: Path, name: str) -> None:
    done = qmdctl("-C", str(locked), "keys", "add", "--", name)
    assert done.returncode == 2
    assert "name" in done.stderr
    assert not keys_path(locked).exists()


def test_refusals_name_the_fix(qmdctl: Run, locked: Path) -> None:
    qmdctl("-C", str(locked), "keys", "add", "ann")
    before = keys_path(locked).read_bytes()
    twice = qmdctl("-C", str(locked), "keys", "add", "ann")
    assert (twice.returncode, twice.stdout) == (2, "")
    assert "qmdctl keys revoke ann" in twice.stderr
    for unknown in ("ben", "0123456789abcdef", "sha256:"):
        missing = qmdctl("-C", str(locked), "keys", "revoke", unknown)
        assert missing.returncode == 2
        assert "qmdctl keys list" in missing.stderr
    assert keys_path(locked).read_bytes() == before
    keys_path(locked).write_bytes(b"\xff\n")
    for arguments in (("list",), ("add", "ben"), ("revoke", "ann")):
        broken = qmdctl("-C", str(locked), "keys", *arguments)
        assert broken.returncode == 2
        assert "not UTF-8" in broken.stderr


def test_the_file_that_stands_for_no_secret_gets_no_key(qmdctl: Run, folder: Path) -> None:
    (folder / ".env").write_text("API_KEYS_FILE=secrets/none\n")
    (folder / "secrets").mkdir()
    (folder / "secrets/none").write_text("")
    assert qmdctl("-C", str(folder), "keys", "add", "ann").returncode == 2
    assert (folder / "secrets/none").read_text() == ""


def test_without_the_setting_a_key_does_nothing_and_add_says_so(qmdctl: Run, folder: Path) -> None:
    (folder / ".env").write_text("# mine\nEMBED_PORT=9001\n")
    done = qmdctl("-C", str(folder), "keys", "add", "ann")
    assert done.returncode == 0
    assert "It does nothing yet" in done.stderr
    assert "API_KEYS_FILE=./secrets/api_keys" in done.stderr
    assert (folder / ".env").read_text() == "# mine\nEMBED_PORT=9001\n"
    agreed = qmdctl("-C", str(folder), "keys", "add", "ben", "--yes")
    assert "qmdctl up" in agreed.stderr
    assert (folder / ".env").read_text() == "# mine\nEMBED_PORT=9001\nAPI_KEYS_FILE=./secrets/api_keys\n"
    assert all(accepts(keys_path(folder), key.stdout.strip()) for key in (done, agreed))


def test_on_a_terminal_add_asks_before_it_sets_the_setting(folder: Path, tmp_path: Path) -> None:
    (folder / ".env").write_text("EMBED_PORT=9001\n")
    assert converse(folder, tmp_path, ["\x04"], "keys", "add", "none")[0] == 130  # an end of file: nothing is written
    assert not keys_path(folder).exists()
    assert converse(folder, tmp_path, ["n"], "keys", "add", "ann")[0] == 0
    assert (folder / ".env").read_text() == "EMBED_PORT=9001\n"
    assert converse(folder, tmp_path, ["y"], "keys", "add", "ben")[0] == 0
    assert (folder / ".env").read_text() == "EMBED_PORT=9001\nAPI_KEYS_FILE=./secrets/api_keys\n"
    assert [key.name for key in api_keys.read(keys_path(folder)).keys] == ["ann", "ben"]


@pytest.mark.parametrize(
    ("content", "level", "words"),
    [
        (None, "failure", "is not a file"),
        (b"", "warning", "has no key"),
        (b"# ann 2026-01-31\n# revoked on 2026-02-01\n", "warning", "has no key"),
        (b"\xff", "failure", "not UTF-8"),
    ],
)
def test_doctor_finds_a_file_that_lets_nobody_in(tmp_path: Path, content: bytes | None, level: str, words: str) -> None:
    if content is not None:
        (tmp_path / "keys").write_bytes(content)
        (tmp_path / "keys").chmod(0o600)
    values = {"API_KEYS_FILE": "keys", "QMD_UID": str(os.getuid())}
    finding = one(NoEngine(tmp_path, machine(), values), "secrets", level)
    assert words in finding.what
    assert finding.fix


def test_a_key_that_nobody_has_seen_is_taken_back_where_env_cannot_be_written(folder: Path) -> None:
    settings, path = settings_of(folder), keys_path(folder)
    path.parent.mkdir()
    key = api_keys.add(path, "ann")
    (folder / ".env").write_text("A=$B\n")  # a line that qmdctl refuses
    with pytest.raises(ConfigurationError):
        switch_on(settings, path, "ann")
    assert not accepts(path, key)


def test_two_adds_at_once_both_survive(locked: Path, tmp_path: Path) -> None:
    """Processes, since a lock is for processes."""
    command = [sys.executable, "-m", "qmdctl", "-C", str(locked), "keys", "add"]
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    names = [f"n{number}" for number in range(6)]
    started = [
        subprocess.Popen([*command, name], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for name in names
    ]
    outputs = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0] * 6, outputs
    assert sorted(key.name or "" for key in api_keys.read(keys_path(locked)).keys) == names
    assert all(accepts(keys_path(locked), out.strip()) for out, _ in outputs)


def test_a_reader_never_sees_more_or_less_than_the_keys(tmp_path: Path) -> None:
    """While keys come and go, the one that stays is always accepted, and what is read is a key that was made."""
    path = tmp_path / "keys"
    stays = api_keys.add(path, "stays")
    made = {hashlib.sha256(stays.encode()).hexdigest()}
    wrong: list[object] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            service, found = ApiKeys(str(path)), api_keys.parse(path.read_bytes(), path)
            if not service.accepts(stays) or found.unusable or any(key.plain for key in found.keys):
                wrong.append(found)

    with ThreadPoolExecutor(2) as pool:
        watching = [pool.submit(watch) for _ in range(2)]
        for number in range(40):
            made.add(hashlib.sha256(api_keys.add(path, f"k{number}").encode()).hexdigest())
            if number % 2:
                api_keys.revoke(path, f"k{number}")
        done.set()
        [future.result() for future in watching]
    assert wrong == []
    assert {key.digest for key in api_keys.read(path).keys} <= made


@pytest.mark.parametrize("action", ["add", "revoke a digest", "revoke a plain key", "a passing key"])
def test_whatever_moment_it_is_cut_off_nobody_is_locked_out_or_let_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str) -> None:
    """Every write is cut off after every byte. The key of before works on, and of the new one there is all or nothing."""
    path = tmp_path / "keys"
    stays = api_keys.add(path, "stays")
    api_keys.add(path, "goes")
    path.write_bytes(path.read_bytes() + b"an-old-key-in-clear-that-goes")
    before = path.read_bytes()
    good = {key.digest for key in api_keys.read(path).keys}
    written: list[tuple[bytes, int]] = []
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda handle, text, at: (written.append((bytes(text), at)), real(handle, text, at))[1])
    if action == "add":
        good.add(hashlib.sha256(api_keys.add(path, "new").encode()).hexdigest())
    elif action == "a passing key":
        with api_keys.passing_key(path) as key:
            good.add(hashlib.sha256(key.encode()).hexdigest())
    else:
        which = "goes" if "digest" in action else hashlib.sha256(b"an-old-key-in-clear-that-goes").hexdigest()[:12]
        api_keys.revoke(path, which)
    monkeypatch.undo()
    cut, content = tmp_path / "cut", bytearray(before)
    states = 0
    for text, at in written:
        for size in range(len(text) + 1):
            state = bytearray(content)
            state[at : at + size] = text[:size]
            cut.write_bytes(state)
            found = api_keys.read(cut)
            assert {key.digest for key in found.keys} <= good, bytes(state)
            assert accepts(cut, stays)
            api_keys.add(cut, "after")  # and it can be gone on with
            assert accepts(cut, stays)
            states += 1
        content[at : at + len(text)] = text
    assert states > len(written)
    assert bytes(content) == path.read_bytes()


def test_files_of_roots_name_the_command_that_gives_them_back(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    api_keys.add(path, "ann")
    with other_user(tmp_path):
        for act in (lambda: api_keys.read(path), lambda: api_keys.add(path, "b"), lambda: api_keys.revoke(path, "ann")):
            with pytest.raises(ConfigurationError, match="Permission denied") as caught:
                act()
            assert caught.value.fix.startswith(f"sudo chown {OTHER}:")


def test_a_file_that_is_replaced_while_it_is_waited_for_is_opened_anew(tmp_path: Path) -> None:
    path, fresh = tmp_path / "keys", tmp_path / "fresh"
    path.write_text("old\n")
    fresh.write_text("of the editor\n")
    handle = os.open(path, os.O_RDWR)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with ThreadPoolExecutor(1) as pool:
        adding = pool.submit(api_keys.add, path, "ann")
        fresh.replace(path)
        os.close(handle)
        key = adding.result(60)
    assert accepts(path, key)
    assert accepts(path, "of the editor")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    settings_of(folder, {"API_KEYS_FILE": "./secrets/api_keys"})
    (folder / "Dockerfile.embed").write_text("FROM scratch\n")
    (folder / "secrets").mkdir()
    return folder


@pytest.fixture(scope="module")
def service(project: Path) -> Iterator[ServiceProcess]:
    with ServiceProcess({"API_KEYS_FILE": str(keys_path(project))}, project / "service.log") as process:
        process.wait_healthy()
        yield process


def test_keys_come_and_go_on_a_running_service(qmdctl: Run, project: Path, service: ServiceProcess) -> None:
    assert service.process is not None
    pid = service.process.pid

    def status(key: str) -> int:
        return httpx.post(f"{service.url}/v1/embeddings", json={"input": "note"}, headers={"authorization": f"Bearer {key}"}).status_code

    keys = {}
    for name in ("ann", "ben"):
        keys[name] = qmdctl("-C", str(project), "keys", "add", name).stdout.strip()
        assert [status(key) for key in keys.values()] == [200] * len(keys)
    assert qmdctl("-C", str(project), "keys", "revoke", "ann").returncode == 0
    assert (status(keys["ann"]), status(keys["ben"])) == (401, 200)
    for number in range(20):  # faster than the clock of the file's times, and never a change of length
        with api_keys.passing_key(keys_path(project)) as key:
            assert status(key) == 200, number
        assert status(key) == 401, number
    assert service.process.poll() is None
    assert service.process.pid == pid


def test_health_has_a_key_for_its_call_and_leaves_none_behind(project: Path, service: ServiceProcess) -> None:
    settings = settings_of(project, {"API_KEYS_FILE": "./secrets/api_keys"})
    path = keys_path(project)

    def status(key: str | None) -> int:
        return httpx.get(f"{service.url}/version", headers={"authorization": f"Bearer {key}"}).status_code

    sizes = set()
    for _ in range(3):
        with api_key(settings, None) as first, api_key(settings, None) as second:
            assert (status(first), status(second)) == (200, 200), "two at once"
        assert (status(first), status(second)) == (401, 401)
        sizes.add(path.stat().st_size)
    assert len(sizes) == 1, "the places in the file are used again"
    assert not api_keys.read(path).named(api_keys.HEALTH)


def test_a_passing_key_that_was_left_behind_loses_its_place_later(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# {api_keys.HEALTH} 2020-01-31\nsha256:{'0' * 64}\n")
    size = path.stat().st_size
    with api_keys.passing_key(path) as key:
        assert accepts(path, key)
        (live,) = api_keys.read(path).keys
        assert live.added != "2020-01-31"
        with api_keys.passing_key(path):
            assert accepts(path, key), "one that is in use keeps its place"
    assert not accepts(path, key)
    assert path.stat().st_size == 2 * size


def test_which_key_health_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / "mine"
    mine.write_text("# mine\nfrom-the-file\n")
    keys = tmp_path / "keys"
    keys.write_text(f"sha256:{'0' * 64}\nin-clear\n")
    closed = settings_of(tmp_path, {"API_KEYS_FILE": "keys"})

    def taken(file: Path | None) -> str | None:
        with api_key(closed, file) as key:
            return key

    assert taken(None) == "in-clear"
    assert taken(mine) == "from-the-file"
    monkeypatch.setenv("QMD_API_KEY", "from-the-environment")
    assert taken(None) == "from-the-environment"
    assert taken(mine) == "from-the-file"
    monkeypatch.delenv("QMD_API_KEY")
    with api_key(settings_of(tmp_path), None) as key:
        assert key is None
    mine.write_text(f"sha256:{'0' * 64}\n")
    for file in (mine, tmp_path / "no-such"):
        with pytest.raises(ConfigurationError, match=r"no key as plain text|cannot be read"):
            taken(file)
    keys.write_text("# none\n")
    assert (taken(None) or "").startswith("qmd_")
    with other_user(tmp_path):
        with pytest.raises(ConfigurationError, match="Permission denied") as caught:
            taken(None)
        assert "--key-file" in caught.value.fix
