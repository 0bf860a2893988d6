"""Rows that were computed lately, so that an agent's repeated search costs nothing.

In memory only, and bounded. A key is a digest of what decides the row; neither texts nor token ids are kept. Only interactive work comes
here (the vectors of queries, the logits of pairs): an index's chunks are each embedded once, and would drive out what is asked again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b, sha256
from typing import Literal

import numpy as np

from embed_service.engine.sequences import Int32
from embed_service.models.spec import Role
from embed_service.scheduler.work import Float32
from embed_service.telemetry import metrics

__all__ = ["ENTRY_BYTES", "Caching", "ResultCache", "keys_of"]

Caching = Literal["reuse", "refresh", "off"]  # refresh: computed anew and kept; off: neither looked up nor kept

KEY_BYTES = 16
ENTRY_BYTES = 320  # beside a row's numbers, at most: two bytes objects and their place in an OrderedDict that was turned over


def keys_of(source: tuple[object, ...], sequences: Sequence[Int32], second: Sequence[int | None]) -> list[bytes]:
    """A digest of `KEY_BYTES` for each sequence of int32 ids. `source` is all else that decides its row: model, device, precision."""
    key = sha256(repr(source).encode()).digest()
    keys = []
    for ids, start in zip(sequences, second, strict=True):
        digest = blake2b((-1 if start is None else start).to_bytes(8, "little", signed=True), key=key, digest_size=KEY_BYTES)
        digest.update(np.ascontiguousarray(ids, np.int32).data)
        keys.append(digest.digest())
    return keys


class ResultCache:
    """The rows used last, of at most `limit` bytes with their keys and the overhead of an entry. For the event loop's thread alone."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0  # bytes
        self._rows: OrderedDict[bytes, bytes] = OrderedDict()  # the one used last stands last

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, role: Role, keys: Iterable[bytes]) -> dict[int, Float32]:
        """Rows float32 [columns] by the index of their key, of those that are there. Counts hits and misses."""
        found: dict[int, Float32] = {}
        misses = 0
        for index, key in enumerate(keys):
            row = self._rows.get(key)
            if row is None:
                misses += 1
            else:
                self._rows.move_to_end(key)
                found[index] = np.frombuffer(row, np.float32)
        metrics.cache_hits.labels(role).inc(len(found))
        metrics.cache_misses.labels(role).inc(misses)
        return found

    def put(self, keys: Iterable[bytes], rows: Float32) -> None:
        """Keep rows float32 [n, columns], the last one longest. One that is not finite, or larger than the bound, is not kept."""
        for key, row in zip(keys, rows, strict=True):
            size = ENTRY_BYTES + row.nbytes
            if size > self.limit or not np.isfinite(row).all():
                continue
            self._drop(key)
            while self.size + size > self.limit:
                self._drop(next(iter(self._rows)))
            self._rows[key] = row.tobytes()
            self.size += size
        metrics.cache_bytes.set(self.size)

    def clear(self) -> None:
        self._rows.clear()
        self.size = 0
        metrics.cache_bytes.set(0)

    def _drop(self, key: bytes) -> None:
        row = self._rows.pop(key, None)
        if row is not None:
            self.size -= ENTRY_BYTES + len(row)
