"""Stored vectors of sqlite-vec's table `vectors_vec`, with its extension or without.

Many Pythons are built without loadable extensions (Apple's, pyenv's own). Then the vectors are read from the ordinary tables that
sqlite-vec keeps them in; of these only what its version 0.1 documents and QMD uses is known here: one float column, a text key.
"""

from __future__ import annotations

import re
import sqlite3
import sys
from array import array

from qmdctl.errors import ConfigurationError

TABLE = "vectors_vec"
COLUMN = re.compile(r"\bembedding\s+float\[(\d+)\]", re.IGNORECASE)
# chunk_offset counts vectors in the blob of the chunk; substr counts bytes from 1.
FROM_SHADOW = f"""
    SELECT substr(held.vectors, :size * place.chunk_offset + 1, :size)
    FROM {TABLE}_rowids AS place JOIN {TABLE}_vector_chunks00 AS held ON held.rowid = place.chunk_id
    WHERE place.id = :key
"""
FROM_TABLE = f"SELECT embedding FROM {TABLE} WHERE hash_seq = :key"


class Vectors:
    """The vectors of an open database. `dimensions` is 0 where it has none."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """ConfigurationError where the table is of another form than QMD's."""
        self._connection = connection
        row = connection.execute("SELECT sql FROM sqlite_master WHERE name = ?", (TABLE,)).fetchone()
        self.dimensions = 0
        self.extension = False
        if row is None:
            return
        found = COLUMN.search(row[0])
        if not found or "hash_seq" not in row[0]:
            shown = " ".join(row[0].split())[:160]
            raise ConfigurationError(
                f"The table {TABLE} is not as any QMD client known here makes it: {shown}", "a newer qmdctl may know it; or: qmd embed -f"
            )
        self.dimensions = int(found[1])
        self.extension = _load_extension(connection)

    def get(self, key: str) -> array[float] | None:
        """The vector stored under `{hash}_{seq}`, float32 [dimensions]; None where there is none of that size."""
        size = 4 * self.dimensions
        if self.extension:
            row = self._connection.execute(FROM_TABLE, {"key": key}).fetchone()
        else:
            row = self._connection.execute(FROM_SHADOW, {"key": key, "size": size}).fetchone()
        if row is None or not isinstance(row[0], bytes) or len(row[0]) != size:
            return None
        vector = array("f", row[0])
        if sys.byteorder == "big":
            vector.byteswap()
        return vector


def _load_extension(connection: sqlite3.Connection) -> bool:
    try:
        connection.enable_load_extension(True)
    except AttributeError:  # this Python is built without
        return False
    import sqlite_vec  # type: ignore[import-untyped]

    try:
        sqlite_vec.load(connection)
        connection.enable_load_extension(False)
    except sqlite3.Error:  # no build for this processor, or an SQLite that refuses
        return False
    return True
