"""The packed executor: transformers' own models on sequences laid end to end, without padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from embed_service.engine.executor import Prepared, Result
from embed_service.engine.heads import PackedModel
from embed_service.engine.memory import DOES_NOT_FIT, free_cache, is_out_of_memory, weights_bytes
from embed_service.engine.pack import Pack, make_pack
from embed_service.engine.prefixes import Prefix, Prefixes
from embed_service.engine.sequences import Sequences
from embed_service.models.spec import Role

# Fewer tokens cost less than attending to them apart. Shorter prefixes are computed with each sequence.
LEAST_PREFIX_TOKENS = 16
# So many times as many keys as a pack has tokens, at most: where keys are gathered, a shared one is in memory once per sequence.
KEYS_PER_TOKEN = 4

Rows = NDArray[np.float32]


@dataclass(frozen=True)
class PackedBatch(Prepared):
    """A micro-batch as packs on the device."""

    packs: list[Pack]


class PackedExecutor:
    """Computes both roles, one pack after the other.

    `pack_tokens`: most tokens of a pack; a longer sequence stands alone. `pack_rows`: most sequences of one.
    """

    name = "packed"

    def __init__(self, models: Mapping[Role, PackedModel], device: str, pack_rows: int, pack_tokens: int) -> None:
        self._models = models
        self.weights_bytes = weights_bytes(models.values())
        self._device = torch.device(device)
        self._pack_rows, self._pack_tokens = pack_rows, pack_tokens
        self._prefixes: dict[Role, Prefixes] = {role: Prefixes() for role in models}

    @property
    def shares_prefixes(self) -> bool:
        return any(model.layout.shares_prefixes for model in self._models.values())

    def prepare(self, role: Role, sequences: Sequences) -> Prepared:
        """See `Executor.prepare`. Left to `run`: where there is no memory even for token ids now, and on MPS, which is one thread's."""
        if self._device.type == "mps":
            return Prepared(role, sequences)
        try:
            return PackedBatch(role, sequences, self._pack(role, sequences))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return Prepared(role, sequences)

    def _pack(self, role: Role, sequences: Sequences) -> list[Pack]:
        layout = self._models[role].layout
        ids = sequences.split()
        cut = [_shared(ids[i], int(sequences.prefix[i])) if layout.shares_prefixes else b"" for i in range(len(ids))]
        own = [ids[i][_tokens(cut[i]) :] for i in range(len(ids))]
        second = sequences.second.tolist()
        return [
            make_pack(layout, group, [own[i] for i in group], [second[i] for i in group], [cut[i] for i in group])
            for group in plan([len(piece) for piece in own], cut, self._pack_rows, self._pack_tokens)
        ]

    def run(self, prepared: Prepared) -> Result:
        """See `Executor.run`. A pack that does not fit in memory is halved until it does."""
        role, sequences = prepared.role, prepared.sequences
        result = Result(np.full((len(sequences), self._models[role].columns), np.nan, np.float32), computed_tokens=0, padded_tokens=0)
        everything = list(range(len(sequences)))
        waiting = prepared.packs[::-1] if isinstance(prepared, PackedBatch) else self._packs_of(role, sequences, everything, result)
        with torch.inference_mode():
            while waiting:
                pack = waiting.pop()
                rows = self._try(role, pack, result)
                if rows is None and self._forget_prefixes():
                    rows = self._try(role, pack, result)
                if rows is not None:
                    result.rows[pack.indices] = rows
                elif len(pack.indices) == 1:
                    self._fail(pack.indices, sequences, result)
                else:
                    result.oom_splits += 1
                    half = len(pack.indices) // 2
                    for indices in (pack.indices[half:], pack.indices[:half]):
                        waiting += self._packs_of(role, sequences, indices, result)
        result.padded_tokens = result.computed_tokens
        return result

    def _packs_of(self, role: Role, sequences: Sequences, indices: list[int], result: Result) -> list[Pack]:
        """The packs of these sequences, the last one first; none where there is no memory for their ids, and they have failed."""
        for attempt in (1, 2):
            try:
                packs = self._pack(role, sequences.take(indices))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if attempt == 2:
                    break
            else:
                for pack in packs:
                    pack.indices = [indices[i] for i in pack.indices]
                return packs[::-1]
            self._forget_prefixes()
            free_cache(self._device)
        self._fail(indices, sequences, result)
        return []

    @staticmethod
    def _fail(indices: list[int], sequences: Sequences, result: Result) -> None:
        for index in indices:
            result.failed[index] = DOES_NOT_FIT.format(tokens=int(sequences.lengths[index]))

    def _forget_prefixes(self) -> bool:
        """Give back what is kept for either role. Whether that was anything."""
        return any([kept.clear() for kept in self._prefixes.values()])

    def _try(self, role: Role, pack: Pack, result: Result) -> Rows | None:
        """The rows of one pack, or None where memory ran out."""
        model = self._models[role]
        try:
            self._find_prefixes(role, pack, result)
            rows: Rows = model(pack).cpu().numpy()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        else:
            result.computed_tokens += pack.tokens
            if pack.followers and not np.isfinite(rows).all():
                self._prefixes[role].clear()  # they may be what is wrong, and would make the next request's rows wrong too
            return rows
        finally:
            pack.prefixes.clear()
        # Past the except block, so that the traceback no longer holds the tensors.
        free_cache(self._device)
        return None

    def _find_prefixes(self, role: Role, pack: Pack, result: Result) -> None:
        """Keys and values of the prefixes that the pack's sequences follow: as kept, or computed, which is done for all in packs."""
        model, kept = self._models[role], self._prefixes[role]
        missing: list[bytes] = []
        for ids in dict.fromkeys(follower.prefix_ids for follower in pack.followers):
            prefix = kept.get(ids)
            if prefix is None:
                missing.append(ids)
            else:
                pack.prefixes[ids] = prefix
        pieces = [np.frombuffer(ids, np.int32) for ids in missing]
        for group in plan([len(piece) for piece in pieces], [b""] * len(pieces), self._pack_rows, self._pack_tokens):
            own = make_pack(model.layout, group, [pieces[i] for i in group], [len(pieces[i]) for i in group])
            own.capture = [Prefix(len(pieces[i])) for i in group]
            model(own)
            result.computed_tokens += own.tokens
            for i, prefix in zip(group, own.capture, strict=True):
                pack.prefixes[missing[i]] = prefix
                kept.put(missing[i], prefix)


def plan(lengths: Sequence[int], prefixes: Sequence[bytes], most_rows: int, most_tokens: int) -> list[list[int]]:
    """Indices of each pack: sequences of one prefix together, longest first, equal ones side by side.

    `lengths` without the prefixes. A pack has at most `most_rows` sequences and `most_tokens` tokens, its prefixes counted once, and
    KEYS_PER_TOKEN times as many keys; one sequence may have more.
    """
    packs: list[list[int]] = []
    tokens = keys = 0
    for index in sorted(range(len(lengths)), key=lambda i: (prefixes[i], -lengths[i])):
        prefix = _tokens(prefixes[index])
        if packs and len(packs[-1]) < most_rows:
            new = prefix if prefixes[index] != prefixes[packs[-1][-1]] else 0
            if tokens + new + lengths[index] <= most_tokens and keys + prefix + lengths[index] <= KEYS_PER_TOKEN * most_tokens:
                packs[-1].append(index)
                tokens += new + lengths[index]
                keys += prefix + lengths[index]
                continue
        packs.append([index])
        tokens = keys = prefix + lengths[index]
    return packs


def _shared(ids: NDArray[np.int32], prefix: int) -> bytes:
    return ids[:prefix].tobytes() if prefix >= LEAST_PREFIX_TOKENS else b""


def _tokens(prefix: bytes) -> int:
    return len(prefix) // np.dtype(np.int32).itemsize
