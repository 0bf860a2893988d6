"""A pack: what one forward computes. Sequences end to end, without padding, on the device."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from embed_service.engine.prefixes import Prefix
from embed_service.engine.sequences import Int32

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class Run:
    """`count` neighbours of `length` tokens each, the first at token `start`: they share one call of the attention."""

    start: int
    count: int
    length: int

    @property
    def stop(self) -> int:
        return self.start + self.count * self.length

    def of(self, x: torch.Tensor) -> torch.Tensor:
        """[1, heads, tokens, size] of the pack → [count, heads, length, size]: its sequences side by side, as a view."""
        part = x[0, :, self.start : self.stop]
        return part.view(part.shape[0], self.count, self.length, part.shape[2]).transpose(0, 1)


@dataclass(frozen=True)
class Follower:
    """Tokens `start` to `stop` of the pack attend to the shared prefix with these ids (their bytes) as well as to their own sequence."""

    start: int
    stop: int
    prefix_ids: bytes

    @property
    def prefix_tokens(self) -> int:
        return len(self.prefix_ids) // np.dtype(np.int32).itemsize


@dataclass
class Pack:
    """`ids`, `positions` int64 [1, tokens]; `types` int64 [1, tokens] token types or None, all on the device.

    `first`, `last` int64 [n]: where each sequence begins and ends. `cu_seqlens` int32 [n + 1]: the same as cumulative lengths.
    `lengths` are those of the sequences, and `indices` which sequences of the micro-batch they are: row i of the results is `indices[i]`'s.
    `prefixes` and `capture` are set for the time of one forward: the keys and values that `followers` attend to, and where to keep those of
    this pack's own sequences, one entry each.
    """

    indices: list[int]
    lengths: list[int]
    ids: torch.Tensor
    positions: torch.Tensor
    types: torch.Tensor | None
    first: torch.Tensor
    last: torch.Tensor
    cu_seqlens: torch.Tensor
    causal: bool
    varlen: bool
    runs: list[Run]
    followers: list[Follower]
    prefixes: dict[bytes, Prefix] = field(default_factory=dict)
    capture: list[Prefix] = field(default_factory=list)
    joined: JoinedKeys | None = None

    @property
    def tokens(self) -> int:
        return self.ids.shape[1]


@dataclass(frozen=True)
class JoinedKeys:
    """For an attention that takes each sequence's keys as one piece: where they are in [prefix 0, prefix 1, …, the pack's own].

    `index` int64 [keys]; `cu_seqlens` int32 [n + 1] of the keys; `longest`: most keys of a sequence.
    """

    index: torch.Tensor
    cu_seqlens: torch.Tensor
    longest: int


@dataclass(frozen=True)
class Layout:
    """How a model's packs are made.

    `causal`: a token sees only those before it. `varlen`: the attention takes the whole pack at once. `shares_prefixes`: it can attend to
    keys that are not in the pack. `position_start`: the position of a sequence's first token. `skipped_id`: a token id that does not move
    the position on (RoBERTa's <pad>, which its own code counts so wherever it stands); None: there is no such id.
    """

    device: torch.device
    causal: bool
    varlen: bool
    shares_prefixes: bool
    segments: bool
    pad_id: int
    position_start: int = 0
    skipped_id: int | None = None


def make_pack(
    layout: Layout, indices: list[int], sequences: Sequence[Int32], second: Sequence[int], prefix_ids: Sequence[bytes] | None = None
) -> Pack:
    """A pack of `sequences` (int32 ids each, a shared prefix not among them), which stand in the order of `indices`.

    `second`: where token type 1 begins in each. `prefix_ids`: the bytes of the shared prefix before each, b"" for none; sequences with the
    same one must be neighbours. A sequence without any token is computed as one padding token: a model must see something.
    """
    pieces = [ids if len(ids) else np.array([layout.pad_id], np.int32) for ids in sequences]
    lengths = [len(ids) for ids in pieces]
    ends = np.cumsum(lengths, dtype=np.int64)
    starts: Int64 = ends - np.asarray(lengths, np.int64)
    followers = _followers(prefix_ids or [], starts, ends)
    flat = np.concatenate(pieces).astype(np.int64)
    positions = _positions(layout, flat, lengths, starts)
    for follower in followers:
        positions[follower.start : follower.stop] += follower.prefix_tokens
    types = None
    if layout.segments:
        types = (np.arange(len(flat)) - np.repeat(starts, lengths) >= np.repeat(np.asarray(second), lengths)).astype(np.int64)

    def on_device(array: Int64 | Int32) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory().to(layout.device, non_blocking=True) if layout.device.type == "cuda" else tensor.to(layout.device)

    return Pack(
        indices=indices,
        lengths=lengths,
        ids=on_device(flat)[None],
        positions=on_device(positions)[None],
        types=None if types is None else on_device(types)[None],
        first=on_device(starts),
        last=on_device(ends - 1),
        cu_seqlens=on_device(_cumulative(lengths)),
        causal=layout.causal,
        varlen=layout.varlen,
        runs=_runs(lengths),
        followers=followers,
        joined=_joined(lengths, followers, starts, on_device) if layout.varlen and followers else None,
    )


def _positions(layout: Layout, flat: Int64, lengths: list[int], starts: Int64) -> Int64:
    if layout.skipped_id is None:
        return layout.position_start + np.arange(len(flat)) - np.repeat(starts, lengths)
    counted = flat != layout.skipped_id
    before = np.cumsum(counted) - counted
    inside = before - np.repeat(before[starts], lengths)
    return np.where(counted, layout.position_start + inside, layout.skipped_id)


def _runs(lengths: list[int]) -> list[Run]:
    runs, start = [], 0
    for length, neighbours in itertools.groupby(lengths):
        run = Run(start, len(list(neighbours)), length)
        runs.append(run)
        start = run.stop
    return runs


def _followers(prefix_ids: Sequence[bytes], starts: Int64, ends: Int64) -> list[Follower]:
    followers, index = [], 0
    for ids, neighbours in itertools.groupby(prefix_ids):
        count = len(list(neighbours))
        if ids:
            followers.append(Follower(int(starts[index]), int(ends[index + count - 1]), ids))
        index += count
    return followers


def _joined(lengths: list[int], followers: list[Follower], starts: Int64, on_device: Callable[[Int64 | Int32], torch.Tensor]) -> JoinedKeys:
    own = sum(follower.prefix_tokens for follower in followers)  # the pack's own keys stand behind the prefixes'
    begin, before = 0, []
    for follower in followers:
        before.append((follower, np.arange(begin, begin + follower.prefix_tokens)))
        begin += follower.prefix_tokens
    parts, key_lengths = [], []
    for start, length in zip(starts.tolist(), lengths, strict=True):
        prefix = next((keys for follower, keys in before if follower.start <= start < follower.stop), np.zeros(0, np.int64))
        parts += [prefix, np.arange(own + start, own + start + length)]
        key_lengths.append(len(prefix) + length)
    return JoinedKeys(on_device(np.concatenate(parts)), on_device(_cumulative(key_lengths)), max(key_lengths))


def _cumulative(lengths: list[int]) -> Int32:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
