"""The packed executor: transformers' own models on sequences laid end to end, without padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from embed_service.engine.executor import Prepared, Result
from embed_service.engine.heads import PackedModel
from embed_service.engine.memory import DOES_NOT_FIT, free_cache, is_out_of_memory
from embed_service.engine.pack import Pack, make_pack
from embed_service.engine.prefixes import Prefix, Prefixes
from embed_service.engine.sequences import Sequences
from embed_service.models.spec import Role

# Fewer tokens cost less than attending to them apart. Shorter prefixes are computed with each sequence.
LEAST_PREFIX_TOKENS = 16

Rows = NDArray[np.float32]


@dataclass(frozen=True)
class PackedBatch(Prepared):
    """A micro-batch as packs on the device, and a pack for each prefix that its sequences share."""

    packs: list[Pack]
    prefixes: dict[bytes, Pack]


class PackedExecutor:
    """Computes both roles, one pack after the other.

    `pack_tokens`: most tokens of a pack; a longer sequence stands alone. `pack_rows`: most sequences of one.
    """

    name = "packed"

    def __init__(self, models: Mapping[Role, PackedModel], device: str, pack_rows: int, pack_tokens: int) -> None:
        self._models = models
        self._device = torch.device(device)
        self._pack_rows, self._pack_tokens = pack_rows, pack_tokens
        self._prefixes: dict[Role, Prefixes] = {role: Prefixes() for role in models}

    def prepare(self, role: Role, sequences: Sequences) -> Prepared:
        """See `Executor.prepare`. Where there is no memory even for token ids now, that is left to `run`."""
        try:
            return self._pack(role, sequences)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return Prepared(role, sequences)

    def _pack(self, role: Role, sequences: Sequences) -> PackedBatch:
        layout = self._models[role].layout
        ids = sequences.split()
        cut = [_shared(ids[i], int(sequences.prefix[i])) if layout.shares_prefixes else b"" for i in range(len(ids))]
        own = [ids[i][_tokens(cut[i]) :] for i in range(len(ids))]
        second = sequences.second.tolist()
        packs = [
            make_pack(layout, group, [own[i] for i in group], [second[i] for i in group], [cut[i] for i in group])
            for group in plan([len(piece) for piece in own], cut, self._pack_rows, self._pack_tokens)
        ]
        prefixes = {prefix: make_pack(layout, [], [np.frombuffer(prefix, np.int32)], [_tokens(prefix)]) for prefix in set(cut) - {b""}}
        return PackedBatch(role, sequences, packs, prefixes)

    def run(self, prepared: Prepared) -> Result:
        """See `Executor.run`. A pack that does not fit in memory is halved until it does."""
        model, sequences = self._models[prepared.role], prepared.sequences
        result = Result(np.full((len(sequences), model.columns), np.nan, np.float32), computed_tokens=0, padded_tokens=0)
        if not isinstance(prepared, PackedBatch):
            free_cache(self._device)
            prepared = self.prepare(prepared.role, sequences)
        if not isinstance(prepared, PackedBatch):
            result.failed = {index: DOES_NOT_FIT.format(tokens=tokens) for index, tokens in enumerate(sequences.lengths.tolist())}
            return result
        waiting = prepared.packs[::-1]
        with torch.inference_mode():
            while waiting:
                pack = waiting.pop()
                rows = self._try(prepared, pack, result)
                if rows is not None:
                    result.rows[pack.indices] = rows
                elif len(pack.indices) == 1:
                    index = pack.indices[0]
                    result.failed[index] = DOES_NOT_FIT.format(tokens=int(sequences.lengths[index]))
                else:
                    result.oom_splits += 1
                    half = len(pack.indices) // 2
                    for indices in (pack.indices[half:], pack.indices[:half]):
                        waiting += _renumbered(self._pack(prepared.role, sequences.take(indices)).packs, indices)[::-1]
        result.padded_tokens = result.computed_tokens
        return result

    def _try(self, batch: PackedBatch, pack: Pack, result: Result) -> Rows | None:
        """The rows of one pack, or None where memory ran out."""
        model, kept = self._models[batch.role], self._prefixes[batch.role]
        try:
            for follower in pack.followers:
                ids = follower.prefix_ids
                prefix = kept.get(ids)
                if prefix is None:
                    prefix = self._compute_prefix(model, batch.prefixes[ids])
                    kept.put(ids, prefix)
                    result.computed_tokens += prefix.tokens
                pack.prefixes[ids] = prefix
            rows: Rows = model(pack).cpu().numpy()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        else:
            result.computed_tokens += pack.tokens
            return rows
        # Past the except block, so that the traceback no longer holds the tensors.
        pack.prefixes.clear()
        kept.clear()
        free_cache(self._device)
        return None

    @staticmethod
    def _compute_prefix(model: PackedModel, pack: Pack) -> Prefix:
        prefix = Prefix(pack.tokens)
        pack.capture = prefix
        try:
            model(pack)
        finally:
            pack.capture = None
        return prefix


def plan(lengths: Sequence[int], prefixes: Sequence[bytes], most_rows: int, most_tokens: int) -> list[list[int]]:
    """Indices of each pack: sequences of one prefix together, longest first, equal ones side by side."""
    packs: list[list[int]] = []
    tokens = 0
    for index in sorted(range(len(lengths)), key=lambda i: (prefixes[i], -lengths[i])):
        if packs and len(packs[-1]) < most_rows and tokens + lengths[index] <= most_tokens:
            packs[-1].append(index)
            tokens += lengths[index]
        else:
            packs.append([index])
            tokens = lengths[index]
    return packs


def _shared(ids: NDArray[np.int32], prefix: int) -> bytes:
    return ids[:prefix].tobytes() if prefix >= LEAST_PREFIX_TOKENS else b""


def _tokens(prefix: bytes) -> int:
    return len(prefix) // np.dtype(np.int32).itemsize


def _renumbered(packs: list[Pack], indices: Sequence[int]) -> list[Pack]:
    for pack in packs:
        pack.indices = [indices[i] for i in pack.indices]
    return packs
