"""QMD indexes for the tests: one that a real client made, and the ways in which an index can differ from it.

`indexes/seed.sqlite.gz` was made by chronologos/qmd at 85d7cad (April 2026) with seven notes in /tmp/notes, on this service with
all-MiniLM-L6-v2 and PROMPT_POLICY=native: `qmd collection add`, `qmd embed`, a `qmd query`, and a second one while every rerank was
answered with 503. Changes go into the ordinary tables that sqlite-vec keeps its vectors in, which needs no extension.
"""

from __future__ import annotations

import gzip
import sqlite3
from array import array
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

FOLDER = Path(__file__).parent / "indexes"
DIMENSIONS = 384
NOTES, VECTORS, SCORES, FAILED = 7, 11, 14, 7  # what is in it

Vector = Sequence[float]


def seed_index(folder: Path) -> Path:
    """A copy of the real client's index."""
    path = folder / "index.sqlite"
    path.write_bytes(gzip.decompress((FOLDER / "seed.sqlite.gz").read_bytes()))
    return path


def change_vectors(path: Path, new: Callable[[str, Vector], Vector]) -> None:
    """Put `new(key, vector)` in the place of each vector; `key` is "{hash}_{seq}"."""
    with sqlite3.connect(path) as connection:
        (chunk, blob) = connection.execute("SELECT rowid, vectors FROM vectors_vec_vector_chunks00").fetchone()
        stored = array("f", blob)
        for key, offset in connection.execute("SELECT id, chunk_offset FROM vectors_vec_rowids"):
            place = slice(offset * DIMENSIONS, (offset + 1) * DIMENSIONS)
            stored[place] = array("f", new(key, stored[place]))
        connection.execute("UPDATE vectors_vec_vector_chunks00 SET vectors = ? WHERE rowid = ?", (stored.tobytes(), chunk))
    connection.close()


def put_vectors(path: Path, vectors: Mapping[str, Vector]) -> None:
    """Those of these keys get new vectors, the others stay."""
    change_vectors(path, lambda key, old: vectors.get(key, old))


def run_sql(path: Path, *statements: str) -> None:
    with sqlite3.connect(path) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


def redeclare(path: Path, old: str, new: str) -> None:
    """Change the declaration of vectors_vec, as a client of another version would have made it."""
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA writable_schema = 1")
        connection.execute("UPDATE sqlite_master SET sql = replace(sql, ?, ?) WHERE name = 'vectors_vec'", (old, new))
    connection.close()


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of the folder but SQLite's shared memory, which holds locks alone."""
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if not file.name.endswith("-shm")}
