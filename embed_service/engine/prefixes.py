"""Keys and values of prefixes that the sequences of a request share, kept for the request's next micro-batches."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import torch

MOST_TOKENS = 2_048  # of all that are kept; Qwen3-4B's keys and values are 147 kB per token in bfloat16


@dataclass
class Prefix:
    """`layers[i]`: keys and values of layer i, [1, key-value heads, tokens, head dimension] each."""

    tokens: int
    layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)


class Prefixes:
    """The last used, by the bytes of their token ids; the newest is kept however long it is."""

    def __init__(self, most_tokens: int = MOST_TOKENS) -> None:
        self._most_tokens = most_tokens
        self._kept: OrderedDict[bytes, Prefix] = OrderedDict()

    @property
    def tokens(self) -> int:
        return sum(prefix.tokens for prefix in self._kept.values())

    def get(self, ids: bytes) -> Prefix | None:
        prefix = self._kept.get(ids)
        if prefix is not None:
            self._kept.move_to_end(ids)
        return prefix

    def put(self, ids: bytes, prefix: Prefix) -> None:
        self._kept[ids] = prefix
        while len(self._kept) > 1 and self.tokens > self._most_tokens:
            self._kept.popitem(last=False)

    def clear(self) -> None:
        self._kept.clear()
