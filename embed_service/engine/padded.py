"""The padded executor: transformers' own models on rectangles of like-long sequences.

Padding is on the right. A causal model's tokens do not see what follows them, and an encoder is given a mask, so the results are those of
the sequence alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch.nn.functional import normalize

from embed_service.engine.executor import Prepared, Result
from embed_service.engine.memory import free_cache, is_out_of_memory
from embed_service.engine.sequences import Sequences
from embed_service.engine.sub_batches import Limits, plan
from embed_service.models.spec import ModelSpec, Pooling, Role

DOES_NOT_FIT = (
    "A text of {tokens} tokens does not fit in the device's free memory: "
    "lower MAX_INPUT_TOKENS, raise EMBED_MEMORY_GB, or choose a smaller model."
)


@dataclass(frozen=True)
class Batch:
    """`ids` int64 [rows, longest], padded on the right; `lengths` int64 [rows]; `types` int64 [rows, longest] token types or None.

    `mask` int64 [rows, longest], or None where nothing is padded.
    """

    ids: torch.Tensor
    lengths: torch.Tensor
    mask: torch.Tensor | None
    types: torch.Tensor | None


class PaddedModel(Protocol):
    """One loaded model. Called with a batch on its device; returns float32 [rows, columns]."""

    spec: ModelSpec
    pad_id: int
    columns: int

    def __call__(self, batch: Batch) -> torch.Tensor: ...


class PaddedExecutor:
    """Computes both roles, one sub-batch after the other."""

    def __init__(self, models: Mapping[Role, PaddedModel], device: str, limits: Limits, name: str = "padded") -> None:
        self._models = models
        self._device = torch.device(device)
        self._limits = limits
        self.name = name

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
    lengths = np.maximum(sequences.lengths, 1).astype(np.int64)
    real[:, 0] = True

    def tensor(array: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> torch.Tensor:
        return torch.from_numpy(array).to(device)

    types = tensor(((columns >= sequences.second[:, None]) & real).astype(np.int64)) if model.spec.segments else None
    return Batch(tensor(ids), tensor(lengths), None if real.all() else tensor(real.astype(np.int64)), types)


def last_position(hidden: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """hidden [rows, longest, size] → float32 [rows, size] at each sequence's last token."""
    return hidden[torch.arange(len(lengths), device=hidden.device), lengths - 1].float()


def pool(hidden: torch.Tensor, batch: Batch, pooling: Pooling) -> torch.Tensor:
    """hidden [rows, longest, size] → float32 [rows, size]."""
    if pooling == "last":
        return last_position(hidden, batch.lengths)
    if pooling == "cls":
        return hidden[:, 0].float()
    if batch.mask is None:
        return hidden.mean(1, dtype=torch.float32)
    total = (hidden.float() * batch.mask[:, :, None]).sum(1)
    return total / batch.lengths[:, None]


class Encoder:
    """transformers' model without a head: last hidden states [rows, longest, size]."""

    def __init__(self, module: torch.nn.Module, spec: ModelSpec, causal: bool) -> None:
        self.module = module
        self._causal = causal
        self._segments = spec.segments

    def __call__(self, batch: Batch) -> torch.Tensor:
        inputs = {"input_ids": batch.ids}
        if batch.mask is not None and not self._causal:
            inputs["attention_mask"] = batch.mask
        if batch.types is not None:
            inputs["token_type_ids"] = batch.types
        if self._causal:
            hidden: torch.Tensor = self.module(**inputs, use_cache=False).last_hidden_state
        else:
            hidden = self.module(**inputs).last_hidden_state
        return hidden


class EmbeddingModel:
    """Unit vectors: float32 [rows, dimensions]."""

    def __init__(self, spec: ModelSpec, encoder: Encoder, pad_id: int) -> None:
        assert spec.pooling is not None
        self.spec, self.pad_id, self.columns = spec, pad_id, spec.dimensions
        self._encoder = encoder
        self._pooling: Pooling = spec.pooling

    def __call__(self, batch: Batch) -> torch.Tensor:
        return normalize(pool(self._encoder(batch), batch, self._pooling), dim=1)


class LastPositionScorer:
    """One logit from the last token's hidden state and a float32 row: the head of a decoder used as a reranker.

    For a yes_no model the row is W[yes] − W[no] of the language-model head, and sigmoid(logit) is the softmax over the two (model card).
    """

    columns = 1

    def __init__(self, spec: ModelSpec, encoder: Encoder, head: torch.Tensor, pad_id: int) -> None:
        self.spec, self.pad_id = spec, pad_id
        self._encoder = encoder
        self._head = head  # float32 [size]

    def __call__(self, batch: Batch) -> torch.Tensor:
        return (last_position(self._encoder(batch), batch.lengths) @ self._head)[:, None]


class Classifier:
    """The one logit of an encoder's sequence-classification head."""

    columns = 1

    def __init__(self, spec: ModelSpec, module: torch.nn.Module, pad_id: int) -> None:
        self.spec, self.pad_id = spec, pad_id
        self._module = module

    def __call__(self, batch: Batch) -> torch.Tensor:
        inputs = {"input_ids": batch.ids}
        if batch.mask is not None:
            inputs["attention_mask"] = batch.mask
        if batch.types is not None:
            inputs["token_type_ids"] = batch.types
        logits: torch.Tensor = self._module(**inputs).logits
        return logits[:, :1].float()
