"""The seed client's index.yml: changed where it must be, every other byte as it was."""

from __future__ import annotations

import difflib
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from qmdctl.errors import ConfigurationError
from qmdctl.laptop import index_yml
from qmdctl.laptop.index_yml import index_path, merge, propose, remote_of, write

NOW = datetime(2026, 11, 25, 12, 30, 5)
MODELS = {"embed": "a/embedder", "generate": "a/writer", "rerank": "a/reranker"}
WANTED: dict[str, Any] = {
    "url": "https://e.tail.ts.net",
    "embed_url": "https://e.tail.ts.net",
    "generation_url": "https://v.tail.ts.net",
    "models": MODELS,
}
BLOCK = """remote:
  url: https://e.tail.ts.net
  embed_url: https://e.tail.ts.net
  generation_url: https://v.tail.ts.net
  models:
    embed: a/embedder
    generate: a/writer
    rerank: a/reranker
"""
OLD = """# My notes.
global_context: "Everything   I know"   # aligned by hand

collections:
    notes:
        path: ~/notes
        pattern: '**/*.md'
        context:
        - {"/": all of them}
        - /work: >
            folded
            text
remote:        # the old box
    url: 'http://old:8001'   # quoted
    timeout: 30
    embed_url: "http://old:8001"
    api_key: ${MY_KEY}
    # models of the old box
    models: {embed: x/y, extra: z}

    other: [1, 2,
            3]
# the end
"""


def lines_changed(before: str, after: str) -> list[str]:
    return [line for line in difflib.ndiff(before.splitlines(True), after.splitlines(True)) if line[0] in "+-"]


def test_what_is_not_asked_for_stays_byte_for_byte() -> None:
    after = merge(OLD, WANTED, "index.yml")
    assert lines_changed(OLD, after) == [
        "-     url: 'http://old:8001'   # quoted\n",
        "+     url: 'https://e.tail.ts.net'   # quoted\n",
        '-     embed_url: "http://old:8001"\n',
        '+     embed_url: "https://e.tail.ts.net"\n',
        "+     generation_url: https://v.tail.ts.net\n",
        "-     models: {embed: x/y, extra: z}\n",
        '+     models: {embed: a/embedder, generate: "a/writer", rerank: "a/reranker", extra: z}\n',
    ]
    remote = yaml.safe_load(after)["remote"]
    assert remote == {**WANTED, "timeout": 30, "api_key": "${MY_KEY}", "models": {**MODELS, "extra": "z"}, "other": [1, 2, 3]}
    assert merge(after, WANTED, "index.yml") == after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", BLOCK),
        ("# only a comment\n", "# only a comment\n" + BLOCK),
        ("collections: {}", "collections: {}\n" + BLOCK),
        ("a: 1\n...\n", "a: 1\n" + BLOCK + "...\n"),
        ("---\na: 1\n", "---\na: 1\n" + BLOCK),
        ("remote:\na: 1\n", BLOCK + "a: 1\n"),
        ("a: 1\nremote:", "a: 1\n" + BLOCK),
        ("remote: # soon\n\n# more\na: 1\n", BLOCK.replace("remote:", "remote: # soon") + "\n# more\na: 1\n"),
        ("a: 1\r\nb: 'é😀'\r\n", "a: 1\r\nb: 'é😀'\r\n" + BLOCK.replace("\n", "\r\n")),
        ("\ufeffa: 1\n", "\ufeffa: 1\n" + BLOCK),
        ("remote:\n  embed_url:\n", "remote:\n  url: https://e.tail.ts.net\n" + BLOCK.split("\n", 2)[2]),
        (BLOCK, BLOCK),
        (BLOCK.rstrip("\n"), BLOCK.rstrip("\n")),
    ],
)
def test_files_of_every_shape(before: str, after: str) -> None:
    assert merge(before, WANTED, "index.yml") == after


@pytest.mark.parametrize(
    "before",
    [
        "remote: {}\n",
        "remote: {url: old, models: {}}\n",
        "remote: {\n  url: old,\n}\n",
        "  a: 1\n  b:\n    - x\n",
        "remote:\n      url: https://e.tail.ts.net\n      models:\n        rerank: x   # mine\nz: 1\n",
        "remote:\n  timeout: 3",
        "remote:\n  models:\n    embed: x\n",
        "remote:\n  models:\n",
        "remote:\n  models:",
        "remote:\n  models: # none\n  url: x\nz: 1\n",
        "remote:\n  models: ~ # none\n  url: x\n",
        "remote: {models: , url: x}\n",
        "remote: {url: x, models: null}\n",
        "remote: ~",
        "remote: null\n",
        "remote: ~ # none\n\na: 1\n",
        "remote:\n  ~\na: 1\n",
        "{remote: ~}\n",
        "? remote\n: url: x\n",
        '"remote":\n  "url": "x"\n',
        "base: &b {url: x, timeout: 4}\nremote:\n  <<: *b\n",
        "text: |\n  remote:\n    url: no\nremote:\n  url: x\n",
        "remote:\n  url: 7\n  embed_url: ~\n",
        "remote:\n\n  # first\n  url: x\n\n\n# last\n",
    ],
)
def test_the_result_is_the_old_document_with_the_new_values(before: str) -> None:
    after = merge(before, WANTED, "index.yml")
    old, new = yaml.safe_load(before) or {}, yaml.safe_load(after)
    remote = {**(old.get("remote") or {}), **WANTED, "models": {**((old.get("remote") or {}).get("models") or {}), **MODELS}}
    assert new == {**old, "remote": remote}
    assert merge(after, WANTED, "index.yml") == after


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: b: c\n", "index.yml, line 1: this is not YAML"),
        ("a: [1\n", "not YAML"),
        ("a: 1\n---\nb: 2\n", "not YAML"),
        ("\tremote: 1\n", "not YAML"),
        ("- a\n- b\n", "no mapping"),
        ("just text\n", "no mapping"),
        ("a: 1\nremote: https://x\n", "line 2: remote is not a mapping"),
        ("remote: [x]\n", "remote is not a mapping"),
        ("a: &n ~\nremote: *n\n", "cannot be changed"),
        ("remote:\n  models: x\n", "line 2: models is not a mapping"),
        ("remote:\n  url: x\n  url: y\n", "line 3: url stands twice"),
        ("a: &u x\nremote:\n  url: *u\n", "cannot be changed"),
        ("remote:\n  url: &u x\n  embed_url: *u\n", "cannot be changed"),
        ("a: &r {url: x}\nremote: *r\n", "cannot be changed"),
        ("remote:\n  url: |\n    x\n", "cannot be changed"),
        ("remote:\n  url: [x]\n", "cannot be changed"),
        ("{a: 1}\n", "cannot be changed"),
        ("a: |+\n  keep\n\n", ""),
    ],
)
def test_what_cannot_be_changed_is_left_alone(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "index.yml"
    path.write_text(text)
    if not words:
        assert yaml.safe_load(merge(text, WANTED, "index.yml"))["a"] == "keep\n\n"
        return
    with pytest.raises(ConfigurationError, match=words) as caught:
        propose(path, WANTED)
    assert str(path) in caught.value.message
    assert caught.value.fix
    assert path.read_text() == text


@pytest.mark.parametrize("text", ["remote: [x]\n", "remote: x\n", "remote: ~\n", "a: 1\n", ""])
def test_where_no_remote_is_a_mapping_there_is_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "index.yml").write_text(text)
    assert remote_of(tmp_path / "index.yml") == {}


def test_a_file_that_is_no_text_or_no_file(tmp_path: Path) -> None:
    path = tmp_path / "index.yml"
    path.write_bytes(b"a: \xff\xfe\n")
    for call in (lambda: propose(path, WANTED), lambda: remote_of(path)):
        with pytest.raises(ConfigurationError, match="cannot be read"):
            call()
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigurationError, match="cannot be read"):
        propose(path, WANTED)
    with pytest.raises(ConfigurationError, match="cannot be written"):
        write(index_yml.Change(Path("/proc/none/index.yml"), None, BLOCK), NOW)


def test_written_whole_with_a_backup_its_mode_and_its_link(tmp_path: Path) -> None:
    (tmp_path / "dotfiles").mkdir()
    target = tmp_path / "dotfiles" / "qmd.yml"
    target.write_text(OLD)
    target.chmod(0o640)
    path = tmp_path / "index.yml"
    path.symlink_to(target)
    backups = []
    for _ in range(2):
        target.write_text(OLD)
        backups.append(write(propose(path, WANTED), NOW))
    assert [backup and backup.name for backup in backups] == ["index.yml.bak-20261125-123005", "index.yml.bak-20261125-123005-1"]
    assert all(backup and backup.read_text() == OLD and backup.stat().st_mode & 0o777 == 0o640 for backup in backups)
    assert path.is_symlink() and path.resolve() == target
    assert target.stat().st_mode & 0o777 == 0o640
    assert yaml.safe_load(target.read_text())["remote"]["url"] == "https://e.tail.ts.net"
    assert [file.name for file in target.parent.iterdir()] == ["qmd.yml"]


def test_a_new_file_in_a_new_folder(tmp_path: Path) -> None:
    path = tmp_path / "a" / "qmd" / "index.yml"
    assert remote_of(path) == {}
    assert write(propose(path, WANTED), NOW) is None
    assert path.read_text() == BLOCK
    assert path.stat().st_mode & 0o777 == 0o644
    dangling = tmp_path / "b.yml"
    dangling.symlink_to(tmp_path / "c" / "real.yml")
    write(propose(dangling, WANTED), NOW)
    assert dangling.is_symlink() and (tmp_path / "c" / "real.yml").read_text() == BLOCK


def test_what_changed_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "index.yml"
    path.write_text("a: 1\n")
    change = propose(path, WANTED)
    path.write_text("a: 2\n")
    with pytest.raises(ConfigurationError, match="meanwhile"):
        write(change, NOW)
    assert path.read_text() == "a: 2\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "index.yml"
    path.write_text("a: 1\n")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(index_yml.os, "fsync", full)
    with pytest.raises(ConfigurationError, match="No space left"):
        write(propose(path, WANTED), NOW)
    assert path.read_text() == "a: 1\n"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["index.yml", "index.yml.bak-20261125-123005"]


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("api_key: sk-1", "api_key: …"),
        ("  api_key: 'sk 1'  # mine", "  api_key: …  # mine"),
        ('{"api_key": "sk-1", url: x}', '{"api_key": …, url: x}'),
        ('api_key: "${QMD_KEY}"', 'api_key: "${QMD_KEY}"'),
        ("api_key: ${QMD_KEY}", "api_key: ${QMD_KEY}"),
        ("api_key: !!str sk-1", "api_key: !!str …"),
        ('api_key: &k !!str "sk \\" 1"', "api_key: &k !!str …"),
        ("api_key: !!str ${QMD_KEY}", "api_key: !!str ${QMD_KEY}"),
        ("api_key: |\n  sk-1\n", "api_key: |\n  …\n"),
        ("api_key: >-  # mine\n  sk-1\n", "api_key: >-  # mine\n  …\n"),
        ("api_key:\n  sk-1\n", "api_key:\n  …\n"),
        ("url: https://me:p@ss@host:1/v1", "url: https://…@host:1/v1"),
        ('url: "http://token@host"  # a@b', 'url: "http://…@host"  # a@b'),
        ("url: https://host/a@b", "url: https://host/a@b"),
    ],
)
def test_a_key_in_clear_is_not_shown(line: str, shown: str) -> None:
    assert index_yml.redacted(line) == shown


def test_where_the_file_is(tmp_path: Path) -> None:
    assert index_path({"QMD_CONFIG_DIR": "/c", "XDG_CONFIG_HOME": "/x"}) == Path("/c/index.yml")
    assert index_path({"XDG_CONFIG_HOME": "/x"}) == Path("/x/qmd/index.yml")
    assert index_path({"QMD_CONFIG_DIR": ""}) == Path.home() / ".config/qmd/index.yml"


@pytest.mark.parametrize("before", ["", "remote:\n  url: 'x'\n  embed_url: \"x\"\n", "remote: {url: x}\n"])
def test_names_of_every_kind_are_written_as_they_are(before: str) -> None:
    odd = "a 'b' \"c\" \\ #d: e"
    wanted: dict[str, Any] = {"url": odd, "embed_url": odd, "models": {"embed": odd}}
    assert yaml.safe_load(merge(before, wanted, "index.yml"))["remote"] == wanted


def test_what_is_there_is_read(tmp_path: Path) -> None:
    path = tmp_path / "index.yml"
    path.write_text(OLD)
    there = remote_of(path)
    assert there["models"] == {"embed": "x/y", "extra": "z"}
    assert there["api_key"] == "${MY_KEY}"
    path.write_text("remote:\n")
    assert remote_of(path) == {}
