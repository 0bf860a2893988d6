"""Token sequences laid end to end: what a micro-batch is made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]


@dataclass(frozen=True)
class Sequences:
    """`ids` int32 [tokens]; `lengths` int32 [n], summing to tokens; `second` int32 [n]; `prefix` int32 [n].

    `second[i]` is the position in sequence i at which its second segment (token type 1) begins; it equals `lengths[i]` where there is none.
    `prefix[i]` is how many of its first tokens it has in common with other sequences of its request, so that a causal model may compute
    them once; less than `lengths[i]`, and 0 where there are none.
    """

    ids: Int32
    lengths: Int32
    second: Int32
    prefix: Int32

    def __len__(self) -> int:
        return len(self.lengths)

    @classmethod
    def of(cls, ids: Sequence[Int32], second: Iterable[int | None] | None = None, prefix: Sequence[int] | None = None) -> Sequences:
        """From separate int32 arrays, one per sequence."""
        lengths = np.fromiter((len(i) for i in ids), np.int32, len(ids))
        starts = lengths.copy()
        for n, start in enumerate(second or ()):
            if start is not None:
                starts[n] = start
        flat = np.concatenate(ids).astype(np.int32, copy=False) if len(ids) else np.zeros(0, np.int32)
        return cls(flat, lengths, starts, np.array(prefix, np.int32) if prefix is not None else np.zeros(len(ids), np.int32))

    def split(self) -> list[Int32]:
        """The ids of each sequence, as views."""
        return np.split(self.ids, np.cumsum(self.lengths)[:-1]) if len(self) else []

    def take(self, indices: Sequence[int]) -> Sequences:
        """The sequences at `indices`, in that order."""
        parts = self.split()
        picked = np.asarray(indices, np.int64)
        flat = np.concatenate([parts[i] for i in indices]) if len(picked) else np.zeros(0, np.int32)
        return Sequences(flat, self.lengths[picked], self.second[picked], self.prefix[picked])

    def to_bytes(self) -> bytes:
        return self.lengths.tobytes() + self.second.tobytes() + self.prefix.tobytes() + self.ids.tobytes()

    @classmethod
    def from_bytes(cls, body: bytes, count: int) -> Sequences:
        flat = np.frombuffer(body, np.int32)
        return cls(flat[3 * count :], flat[:count], flat[count : 2 * count], flat[2 * count : 3 * count])
