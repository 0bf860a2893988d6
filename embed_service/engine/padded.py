"""The padded executor: models of unknown architecture on rectangles of like-long sequences, padded on the right and masked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from embed_service.engine.executor import Prepared, Result
from embed_service.engine.memory import DOES_NOT_FIT, free_cache, is_out_of_memory, weights_bytes
from embed_service.engine.sequences import Sequences
from embed_service.engine.sub_batches import Limits, plan
from embed_service.models.spec import ModelSpec, Role


@dataclass(frozen=True)
class Batch:
    """`ids` int64 [rows, longest], padded on the right; `mask` int64 [rows, longest], 1 where a token is real."""

    ids: torch.Tensor
    mask: torch.Tensor


class PaddedModel(Protocol):
    """One loaded model. Called with a batch on its device; returns float32 [rows, columns]."""

    spec: ModelSpec
    pad_id: int
    columns: int

    def __call__(self, batch: Batch) -> torch.Tensor: ...


class PaddedExecutor:
    """Computes the roles that it has models for, one sub-batch after the other."""

    name = "sentence-transformers"
    shares_prefixes = False

    def __init__(self, models: Mapping[Role, PaddedModel], device: str, limits: Limits) -> None:
        self._models = models
        self.weights_bytes = weights_bytes(models.values())
        self._device = torch.device(device)
        self._limits = limits

    def prepare(self, role: Role, sequences: Sequences) -> Prepared:
        return Prepared(role, sequences)

    def run(self, prepared: Prepared) -> Result:
        """See `Executor.run`. A sub-batch that does not fit in memory is halved until it does."""
        model, sequences = self._models[prepared.role], prepared.sequences
        result = Result(
            np.full((len(sequences), model.columns), np.nan, np.float32), computed_tokens=int(sequences.lengths.sum()), padded_tokens=0
        )
        waiting = plan(sequences.lengths, self._limits)[::-1]
        with torch.inference_mode():
            while waiting:
                indices = waiting.pop()
                rows = self._try(model, sequences.take(indices), result)
                if rows is not None:
                    result.rows[indices] = rows
                elif len(indices) == 1:
                    result.failed[indices[0]] = DOES_NOT_FIT.format(tokens=int(sequences.lengths[indices[0]]))
                else:
                    result.oom_splits += 1
                    half = len(indices) // 2
                    waiting += [indices[half:], indices[:half]]
        return result

    def _try(self, model: PaddedModel, sequences: Sequences, result: Result) -> np.ndarray[tuple[int, int], np.dtype[np.float32]] | None:
        """The rows of one sub-batch, or None where memory ran out."""
        try:
            batch = make_batch(sequences, model, self._device)
            rows: np.ndarray[tuple[int, int], np.dtype[np.float32]] = model(batch).cpu().numpy()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        else:
            result.padded_tokens += batch.ids.numel()
            return rows
        # Past the except block, so that the traceback no longer holds the tensors.
        free_cache(self._device)
        return None


def make_batch(sequences: Sequences, model: PaddedModel, device: torch.device) -> Batch:
    """The rectangle of these sequences on `device`."""
    columns = np.arange(sequences.lengths.max(initial=1))
    real = columns < sequences.lengths[:, None]
    ids = np.full(real.shape, model.pad_id, np.int64)
    ids[real] = sequences.ids
    # A sequence without any token is computed as one padding token: a model must see something.
    real[:, 0] = True
    return Batch(torch.from_numpy(ids).to(device), torch.from_numpy(real.astype(np.int64)).to(device))
