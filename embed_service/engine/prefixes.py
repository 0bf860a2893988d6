"""Keys and values of prefixes that the sequences of a request share, kept for the request's next micro-batches."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from hashlib import blake2b

import torch

MOST_TOKENS = 2_048  # of all that are kept; Qwen3-4B's keys and values are 147 kB per token in bfloat16


@dataclass
class Prefix:
    """`layers[i]`: keys and values of layer i, [1, key-value heads, tokens, head dimension] each."""

    tokens: int
    layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)


class Prefixes:
    """The last used, by a digest of their token ids: the ids of a query are not kept.

    The newest is kept however long it is, since the next micro-batch of its request needs it; where memory runs out all are forgotten.
    """

    def __init__(self, most_tokens: int = MOST_TOKENS) -> None:
        self._most_tokens = most_tokens
        self._kept: OrderedDict[bytes, Prefix] = OrderedDict()

    @property
    def tokens(self) -> int:
        return sum(prefix.tokens for prefix in self._kept.values())

    def get(self, ids: bytes) -> Prefix | None:
        key = _digest(ids)
        prefix = self._kept.get(key)
        if prefix is not None:
            self._kept.move_to_end(key)
        return prefix

    def put(self, ids: bytes, prefix: Prefix) -> None:
        self._kept[_digest(ids)] = prefix
        while len(self._kept) > 1 and self.tokens > self._most_tokens:
            self._kept.popitem(last=False)

    def clear(self) -> bool:
        """Whether there was anything."""
        had = bool(self._kept)
        self._kept.clear()
        return had


def _digest(ids: bytes) -> bytes:
    return blake2b(ids, digest_size=16).digest()
