"""What is read from the index: how much there is, a sample of vectors with their texts, the rerank scores in the cache.

Tables of QMD (tobi/qmd and its forks, 2026): `documents` (hash, path, title, active), `content` (hash, doc), `content_vectors` (hash, seq,
pos, model, embedded_at and in newer ones total_chunks), `vectors_vec` ("{hash}_{seq}"), `llm_cache` (hash, result).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from qmdctl.errors import ConfigurationError, QmdError
from qmdctl.index.vectors import Vectors

SAMPLE = 12
CANDIDATES = 8 * SAMPLE  # some have a text that is not known for certain
LONGEST = 2700  # UTF-16 units of a chunk: 900 tokens of 3, in every client known here
LOCK_SECONDS = 5.0
CALL_SECONDS = 1.0  # a call's scores are written within milliseconds; the next call follows an expansion and a search
NEEDED = {
    "content": {"hash", "doc"},
    "documents": {"hash", "path", "title", "active"},
    "content_vectors": {"hash", "seq", "pos", "model", "embedded_at"},
}
ATTACHED = "SELECT count(*) FROM content_vectors WHERE hash IN (SELECT hash FROM documents WHERE active = 1)"
OTHER_SCHEMA = "is it QMD's? qmd status prints the index's file; a client that is older or newer may have other tables: qmd embed -f"


@dataclass(frozen=True)
class Chunk:
    """One stored vector and what the client made it from. `titles`: those that it may have put before the text, likeliest first."""

    key: str
    path: str
    titles: tuple[str, ...]
    text: str
    model: str
    vector: array[float]


@dataclass(frozen=True)
class Index:
    """`models`: the names that the client stored, with the number of vectors of each. `dimensions` is 0 where there are no vectors.

    `attached`: the vectors of documents that are still there.
    """

    path: Path
    documents: int
    vectors: int
    attached: int
    dimensions: int
    models: dict[str, int]
    scores: int
    zero_scores: int  # of calls that failed
    extension: bool
    chunks: list[Chunk] = field(default_factory=list)


def read_index(path: Path) -> Index:
    """Read it in one transaction, which holds up no writer, and close it. Nothing in it is changed.

    ConfigurationError for what is no QMD index; QmdError where it is damaged, or locked for longer than `LOCK_SECONDS`.
    """
    with _opened(path) as connection:
        columns = _checked(connection, path)
        vectors = Vectors(connection)
        scores, zeros = _rerank_scores(connection)
        models = dict(connection.execute("SELECT model, count(*) FROM content_vectors GROUP BY model ORDER BY 2 DESC"))
        return Index(
            path=path,
            documents=connection.execute("SELECT count(*) FROM documents WHERE active = 1").fetchone()[0],
            vectors=sum(models.values()),
            attached=connection.execute(ATTACHED).fetchone()[0],
            dimensions=vectors.dimensions,
            models=models,
            scores=scores,
            zero_scores=zeros,
            extension=vectors.extension,
            chunks=list(_sample(connection, vectors, columns)) if vectors.dimensions else [],
        )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    if not path.is_file():
        raise ConfigurationError(f"{path} is not a file", "--index FILE: the SQLite file that qmd status prints")
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise ConfigurationError(f"{path} is empty", "qmd update, then qmd embed; or --index FILE with another one")
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}", f"ls -l {path}") from None
    connection = None
    try:
        connection = _connect(path)
        connection.execute("BEGIN")
        yield connection
    except sqlite3.Error as error:
        raise _told(path, error) from None
    finally:
        if connection is not None:
            connection.close()


def _connect(path: Path) -> sqlite3.Connection:
    """Never `immutable` where the file could change: SQLite would then miss what the client writes meanwhile, and its locks."""
    address = f"file:{quote(str(path.absolute()))}?mode=ro"

    def connect(address: str) -> sqlite3.Connection:
        connection = sqlite3.connect(address, uri=True, timeout=LOCK_SECONDS, isolation_level=None)
        connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
        connection.execute("PRAGMA query_only = 1")
        connection.execute("SELECT count(*) FROM sqlite_master")
        return connection

    try:
        return connect(address)
    except sqlite3.OperationalError:
        # A write-ahead log needs a file beside it for its locks. In a folder that nobody may write there is no writer either.
        log = path.with_name(f"{path.name}-wal")
        if log.exists() and log.stat().st_size:
            raise
        if os.access(path.parent, os.W_OK):
            raise
        return connect(f"{address}&immutable=1")


def _told(path: Path, error: sqlite3.Error) -> QmdError:
    """SQLite's words as a sentence with a fix."""
    said = str(error)
    if "not a database" in said:
        return ConfigurationError(
            f"{path} is not an SQLite database (or it is an encrypted one)", "--index FILE: the file that qmd status prints"
        )
    if "locked" in said or "busy" in said:
        return QmdError(f"{path} is locked by another program, and was for {LOCK_SECONDS:g} s", "try again when qmd has ended")
    if "malformed" in said or "disk image" in said or "corrupt" in said:
        return QmdError(f"The index {path} is damaged: {said}", f"make it anew: mv {path} {path}.damaged, then qmd update and qmd embed")
    return QmdError(f"{path} cannot be read as an index: {said}", f"ls -l {path}*; does qmd status read it?")


def _checked(connection: sqlite3.Connection, path: Path) -> set[str]:
    """The columns of content_vectors. ConfigurationError naming the table or column that is missing."""
    columns: set[str] = set()
    for table, needed in NEEDED.items():
        columns = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
        if not columns:
            raise ConfigurationError(f"{path} has no table {table}: it is not a QMD index, or one of a version unknown here", OTHER_SCHEMA)
        if missing := sorted(needed - columns):
            raise ConfigurationError(f"{path}: its table {table} has no column {', '.join(missing)}", OTHER_SCHEMA)
    return columns


def _rerank_scores(connection: sqlite3.Connection) -> tuple[int, int]:
    """(all rerank scores, those of calls that failed).

    The cache tells no kinds apart, but only a rerank's result is a bare number: an expansion is JSON. A client whose rerank failed writes
    0 for every document of the call, one row after the other; a single 0 among others may be a true score.
    """
    columns = {row[1] for row in connection.execute("PRAGMA table_info(llm_cache)")}
    if "result" not in columns:
        return 0, 0
    at = "created_at" if "created_at" in columns else "NULL"
    count = failed = 0
    for call in _calls(connection.execute(f"SELECT result, {at} FROM llm_cache ORDER BY rowid")):
        count += len(call)
        failed += 0 if any(call) else len(call)
    return count, failed


def _calls(rows: Iterable[tuple[str, str]]) -> Iterator[list[float]]:
    """The scores that were written together: nothing else in between, and no pause."""
    call: list[float] = []
    before: datetime | None = None
    for result, created in rows:
        score, at = _number(result), _time(created)
        pause = before is not None and at is not None and abs(at - before).total_seconds() > CALL_SECONDS
        if call and (score is None or pause):
            yield call
            call = []
        if score is not None:
            call.append(score)
        before = at
    if call:
        yield call


def _number(text: str) -> float | None:
    try:
        return float(text)
    except (ValueError, TypeError):
        return None


def _time(text: str | None) -> datetime | None:
    """SQLite's own timestamps have no zone and are UTC."""
    try:
        at = datetime.fromisoformat(text or "")
    except (ValueError, TypeError):
        return None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _sample(connection: sqlite3.Connection, vectors: Vectors, columns: set[str]) -> Iterator[Chunk]:
    """Up to `SAMPLE` chunks, from the oldest vectors to the newest, so that an index of two kinds is noticed.

    Only each document's last chunk: it ends where the document does, whichever way the client cut. Where some of a document's chunks
    failed to be embedded there is a hole, or a text that is too long for a chunk; such are left out.
    """
    # Rows that an older client wrote have 1 there, however many there are.
    whole = "AND chunk.total_chunks IN (last.count, 1)" if "total_chunks" in columns else ""
    query = f"""
        WITH last AS (SELECT hash, max(seq) AS seq, count(*) AS count FROM content_vectors GROUP BY hash)
        SELECT chunk.hash, chunk.seq, chunk.pos, chunk.model, min(documents.path), documents.title
        FROM last JOIN content_vectors AS chunk ON chunk.hash = last.hash AND chunk.seq = last.seq
        JOIN documents ON documents.hash = last.hash AND documents.active = 1
        WHERE last.count = last.seq + 1 {whole}
        GROUP BY chunk.hash ORDER BY chunk.embedded_at, chunk.hash
    """
    rows = connection.execute(query).fetchall()
    taken = 0
    for row in (rows[index] for index in _spread(len(rows))):
        chunk = _chunk(connection, vectors, *row)
        if chunk is not None:
            yield chunk
            taken += 1
            if taken == SAMPLE:
                return


def _spread(count: int) -> list[int]:
    """Up to `CANDIDATES` of so many rows: `SAMPLE` at equal distances from the first to the last, then others between them."""
    if not count:
        return []
    chosen = [round(step * (count - 1) / (parts - 1)) for parts in range(SAMPLE, CANDIDATES + 1, SAMPLE) for step in range(parts)]
    return list(dict.fromkeys(chosen))[:CANDIDATES]


def _chunk(
    connection: sqlite3.Connection, vectors: Vectors, digest: str, seq: int, pos: int, model: str, path: str, title: str
) -> Chunk | None:
    """The chunk with its text; None where that is not known for certain, or there is no vector."""
    row = connection.execute("SELECT doc FROM content WHERE hash = ?", (digest,)).fetchone()
    text = _tail(row[0], pos) if row else None
    key = f"{digest}_{seq}"
    vector = vectors.get(key) if text else None
    if text is None or vector is None:
        return None
    name = path.rsplit("/", 1)[-1].rsplit(".", 1)[0]
    return Chunk(key, path, tuple(dict.fromkeys(one for one in (title, name) if one)), text, model, vector)


def _tail(document: str, pos: int) -> str | None:
    """The document from `pos` on, which counts UTF-16 units as JavaScript does. None for too long, blank, or cut within a character."""
    raw = document.encode("utf-16-le", "surrogatepass")[2 * pos :]
    if not 0 < len(raw) <= 2 * LONGEST:
        return None
    try:
        text = raw.decode("utf-16-le")
    except UnicodeDecodeError:
        return None
    return text if text.strip() else None
