"""The record of what was downloaded completely."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from embed_service.models.revisions import Pinned, Revisions

PINNED = Pinned("a" * 40, {"config.json": 2})


def test_a_pinned_branch_is_found_by_name_and_by_commit(tmp_path: Path) -> None:
    Revisions(tmp_path).write("org/model", "main", PINNED)
    again = Revisions(tmp_path)
    assert again.lookup("org/model", "main") == again.lookup("org/model", "a" * 40) == PINNED
    assert again.lookup("org/model", "v1") is again.lookup("org/other", "main") is None


def test_many_writers_lose_nothing(tmp_path: Path) -> None:
    names = [f"org/model-{n}" for n in range(60)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: Revisions(tmp_path).write(name, "main", PINNED), names))
    assert [name for name in names if Revisions(tmp_path).lookup(name, "main") != PINNED] == []
    assert {p.suffix for p in tmp_path.iterdir()} <= {".json", ".lock"}, "no temporary file is left"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"org/model": 1}', '{"org/model": {"main": {"commit": "x"}}}', "\xff"])
def test_a_damaged_record_is_an_empty_one_and_is_mended(tmp_path: Path, content: str) -> None:
    record = Revisions(tmp_path)
    record.path.write_bytes(content.encode("latin-1"))
    assert record.lookup("org/model", "main") is None
    record.write("org/model", "main", PINNED)
    assert record.lookup("org/model", "main") == PINNED


def test_the_lock_is_open_to_the_next_user(tmp_path: Path) -> None:
    Revisions(tmp_path).write("org/model", "main", PINNED)
    assert (tmp_path / "embed-service-revisions.lock").stat().st_mode & 0o777 == 0o666


def test_presence_is_every_file_with_its_size(tmp_path: Path) -> None:
    assert not PINNED.present_in(tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert not PINNED.present_in(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert PINNED.present_in(tmp_path)
