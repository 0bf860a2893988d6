"""Finding and reading an index: what is no index, what is damaged, and the two ways to a vector."""

from __future__ import annotations

import ctypes
import ctypes.util
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlite_vec

from qmdctl.errors import ConfigurationError, QmdError
from qmdctl.index import database, vectors
from qmdctl.index.database import SAMPLE, read_index
from qmdctl.index.locate import find_index
from tests.qmdctl.index_files import NOTES, redeclare, run_sql, seed_index


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return seed_index(tmp_path)


@pytest.fixture
def vec0() -> Iterator[None]:
    """sqlite-vec in every connection, also where this Python cannot load extensions: by SQLite's own list of them."""
    library = ctypes.CDLL(ctypes.util.find_library("sqlite3"))
    entry = ctypes.CDLL(sqlite_vec.loadable_path() + ".so").sqlite3_vec_init
    library.sqlite3_auto_extension(entry)
    yield
    library.sqlite3_cancel_auto_extension(entry)


def test_both_ways_give_the_same_vectors(index: Path, vec0: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "_load_extension", lambda connection: False)
    from_tables = read_index(index)
    monkeypatch.setattr(vectors, "_load_extension", lambda connection: True)
    by_extension = read_index(index)
    assert not from_tables.extension
    assert by_extension.extension
    assert len(from_tables.chunks) == NOTES
    assert [chunk.vector for chunk in from_tables.chunks] == [chunk.vector for chunk in by_extension.chunks]


def test_many_vectors_and_deleted_ones(index: Path, vec0: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a thousand lie in several chunks, and a deleted one leaves a gap: written by sqlite-vec itself."""
    monkeypatch.setattr(vectors, "_load_extension", lambda connection: False)
    with sqlite3.connect(index) as connection:
        for number in range(1500):
            digest, vector = f"h{number:05}", [float(number), *[1.0] * 383]
            connection.execute("INSERT INTO content VALUES (?, ?, '')", (digest, f"text {number}"))
            connection.execute(
                "INSERT INTO documents (collection, path, title, hash, created_at, modified_at) VALUES ('c', ?, 't', ?, '', '')",
                (f"{number}.md", digest),
            )
            connection.execute("INSERT INTO content_vectors VALUES (?, 0, 0, 'm', ?)", (digest, f"2026-11-27T{number:05}"))
            connection.execute(
                "INSERT INTO vectors_vec (hash_seq, embedding) VALUES (?, ?)", (f"{digest}_0", sqlite_vec.serialize_float32(vector))
            )
        for number in range(0, 1500, 3):
            connection.execute("DELETE FROM vectors_vec WHERE hash_seq = ?", (f"h{number:05}_0",))
    connection.close()
    chunks = read_index(index).chunks
    ours = [chunk for chunk in chunks if chunk.key.startswith("h0")]
    assert len(chunks) == SAMPLE
    assert len(ours) > SAMPLE / 2
    numbers = [int(chunk.key[1:6]) for chunk in ours]
    assert [chunk.vector[0] for chunk in ours] == numbers
    assert all(number % 3 for number in numbers)
    assert max(numbers) - min(numbers) > 1000, "from the oldest to the newest"


def test_the_last_chunk_is_cut_as_javascript_counts(index: Path) -> None:
    emoji = next(chunk for chunk in read_index(index).chunks if chunk.path == "sub/emoji.md")
    with sqlite3.connect(index) as connection:
        (document,) = connection.execute("SELECT doc FROM content JOIN documents USING (hash) WHERE path = 'sub/emoji.md'").fetchone()
        ((pos,),) = connection.execute("SELECT pos FROM content_vectors WHERE hash || '_' || seq = ?", (emoji.key,))
    connection.close()
    assert document.endswith(emoji.text)
    assert pos > 0
    assert len(document.encode("utf-16-le")) == 2 * pos + len(emoji.text.encode("utf-16-le"))


def test_texts_that_are_not_certain_are_left_out(index: Path) -> None:
    keys = {chunk.path: chunk.key for chunk in read_index(index).chunks}
    backup = keys["sub/backup.md"]
    run_sql(
        index,
        # its last chunk failed to be embedded: what follows the one before is too long
        f"DELETE FROM content_vectors WHERE hash || '_' || seq = '{backup}'",
        f"UPDATE content SET doc = '  ' WHERE hash = '{keys['cactus.md'][:-2]}'",
        f"UPDATE content_vectors SET pos = 85 WHERE hash = '{keys['My-Trains.md'][:-2]}'",  # in the middle of an emoji
        f"UPDATE content_vectors SET seq = 1 WHERE hash = '{keys['garden.md'][:-2]}'",  # a hole before it
    )
    with sqlite3.connect(index) as connection:
        (document,) = connection.execute(f"SELECT doc FROM content WHERE hash = '{keys['My-Trains.md'][:-2]}'").fetchone()
    connection.close()
    split = len(document[: document.index("🚆")].encode("utf-16-le")) // 2 + 1
    run_sql(index, f"UPDATE content_vectors SET pos = {split} WHERE hash = '{keys['My-Trains.md'][:-2]}'")
    left = {chunk.path for chunk in read_index(index).chunks}
    assert left == {"notitle.md", "network.md", "sub/emoji.md"}


def test_newer_clients_count_the_chunks(index: Path) -> None:
    """tobi/qmd since 2.8 stores how many chunks a document has: where some are missing its last one is not known."""
    emoji = next(chunk.key for chunk in read_index(index).chunks if chunk.path == "sub/emoji.md")
    run_sql(
        index,
        "ALTER TABLE content_vectors ADD COLUMN total_chunks INTEGER NOT NULL DEFAULT 1",
        f"UPDATE content_vectors SET total_chunks = 4 WHERE hash = '{emoji[:-2]}'",
    )
    assert {chunk.path for chunk in read_index(index).chunks} >= {"sub/backup.md", "cactus.md"}
    assert emoji not in {chunk.key for chunk in read_index(index).chunks}


def test_a_zero_among_scores_is_a_score(index: Path) -> None:
    run_sql(index, "DELETE FROM llm_cache")
    rows = [
        ("[]", "09:00:00.000"),
        ("0.7", "09:00:01.000"),
        ("0", "09:00:01.010"),
        ("0", "09:00:09.000"),  # another search, whose expansion was in the cache
        ("0", "09:00:09.001"),
        ('[{"type":"vec","query":"0"}]', "09:00:09.500"),
        ("0", "09:00:09.600"),
        ("nonsense", "09:00:09.700"),
    ]
    with sqlite3.connect(index) as connection:
        for number, (result, time) in enumerate(rows):
            connection.execute("INSERT INTO llm_cache VALUES (?, ?, ?)", (str(number), result, f"2026-11-26T{time}Z"))
    connection.close()
    read = read_index(index)
    assert (read.scores, read.zero_scores) == (5, 3)


def test_a_cache_with_other_times_or_none_is_read(index: Path) -> None:
    """SQLite's own timestamps among a client's; then a table without them, where all that stands together is one call."""
    run_sql(
        index,
        "DELETE FROM llm_cache",
        "INSERT INTO llm_cache VALUES ('a', '0', '2026-11-26T09:00:00.000Z')",
        "INSERT INTO llm_cache VALUES ('b', '0.5', '2026-11-26 09:30:00')",
    )
    assert (read_index(index).scores, read_index(index).zero_scores) == (2, 1)
    run_sql(index, "ALTER TABLE llm_cache DROP COLUMN created_at")
    assert (read_index(index).scores, read_index(index).zero_scores) == (2, 0)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    file = tmp_path / "index.sqlite"
    file.write_bytes(b"no database at all\n" * 100)
    with pytest.raises(ConfigurationError, match="not an SQLite database"):
        read_index(file)
    file.write_bytes(b"")
    with pytest.raises(ConfigurationError, match="is empty"):
        read_index(file)
    with pytest.raises(ConfigurationError, match="is not a file"):
        read_index(tmp_path)


@pytest.mark.parametrize("table", ["content", "documents", "content_vectors"])
def test_a_table_that_is_missing_is_named(index: Path, table: str) -> None:
    run_sql(index, f"ALTER TABLE {table} RENAME TO other")
    with pytest.raises(ConfigurationError, match=f"has no table {table}:"):
        read_index(index)


def test_a_column_that_is_missing_is_named(index: Path) -> None:
    run_sql(index, "ALTER TABLE content_vectors RENAME COLUMN seq TO number")
    with pytest.raises(ConfigurationError, match="content_vectors has no column seq"):
        read_index(index)


def test_vectors_of_an_unknown_form(index: Path) -> None:
    redeclare(index, "float[384]", "int8[384]")
    with pytest.raises(ConfigurationError, match=r"vectors_vec is not as any QMD client.*int8\[384\]"):
        read_index(index)


def test_a_damaged_index(index: Path) -> None:
    size = index.stat().st_size
    with index.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 8192))
    with pytest.raises(QmdError, match="is damaged") as told:
        read_index(index)
    assert f"mv {index}" in told.value.fix


def test_a_locked_index(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "LOCK_SECONDS", 0.05)
    run_sql(index, "PRAGMA journal_mode = DELETE")
    writer = sqlite3.connect(index, isolation_level=None)
    try:
        writer.execute("BEGIN EXCLUSIVE")
        with pytest.raises(QmdError, match="is locked by another program"):
            read_index(index)
    finally:
        writer.close()
    assert len(read_index(index).chunks) == NOTES


def test_a_folder_that_nobody_may_write(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where SQLite cannot make its file of locks, and nobody could be writing."""
    real = sqlite3.connect

    def refuse(address: str, **options: object) -> sqlite3.Connection:
        if "immutable" not in address:
            raise sqlite3.OperationalError("unable to open database file")
        return real(address, **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(sqlite3, "connect", refuse)
    with pytest.raises(QmdError, match="unable to open"):
        read_index(index)
    monkeypatch.setattr(database.os, "access", lambda path, mode: False)
    assert len(read_index(index).chunks) == NOTES


def test_where_an_index_is_looked_for(tmp_path: Path) -> None:
    home, project = tmp_path / "home", tmp_path / "notes" / "deep"
    places = {"HOME": str(home)}
    project.mkdir(parents=True)
    with pytest.raises(ConfigurationError, match="There is no QMD index") as told:
        find_index(None, places, project)
    assert str(home / ".cache/qmd/index.sqlite") in told.value.message
    assert "--index FILE" in told.value.fix
    cache = home / ".cache" / "qmd"
    cache.mkdir(parents=True)
    for name in ("index", "work"):
        (cache / f"{name}.sqlite").touch()
    assert find_index(None, places, project) == cache / "index.sqlite"
    assert find_index("work", places, project) == cache / "work.sqlite"
    (tmp_path / "notes/.qmd").mkdir()
    (tmp_path / "notes/.qmd/index.yml").touch()
    (tmp_path / "notes/.qmd/index.sqlite").touch()
    assert find_index(None, places, project) == tmp_path / "notes/.qmd/index.sqlite"
    other = tmp_path / "other"
    shutil.copytree(cache, other / "qmd")
    assert find_index(None, {**places, "XDG_CACHE_HOME": str(other)}, tmp_path) == other / "qmd/index.sqlite"
    assert find_index(None, {**places, "INDEX_PATH": str(cache / "work.sqlite")}, project) == cache / "work.sqlite"
    with pytest.raises(ConfigurationError, match="not at"):
        find_index(str(tmp_path / "nowhere.sqlite"), places, project)
