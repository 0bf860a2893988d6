"""From a pack to the rows of its sequences: hidden states, and what a model makes of them."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch.nn.functional import normalize

from embed_service.engine.pack import Layout, Pack
from embed_service.models.spec import ModelSpec, Pooling


class PackedModel(Protocol):
    """One loaded model. Called with a pack on its device; returns float32 [sequences, columns]."""

    spec: ModelSpec
    layout: Layout
    columns: int

    def __call__(self, pack: Pack) -> torch.Tensor: ...


class Body:
    """transformers' model without a head: the last hidden states [tokens, size] of a pack."""

    def __init__(self, module: torch.nn.Module, layout: Layout) -> None:
        self.module = module
        self.layout = layout

    def __call__(self, pack: Pack) -> torch.Tensor:
        inputs: dict[str, Any] = {"input_ids": pack.ids, "position_ids": pack.positions, "pack": pack}
        if pack.types is not None:
            inputs["token_type_ids"] = pack.types
        if self.layout.causal:
            inputs["use_cache"] = False
        hidden: torch.Tensor = self.module(**inputs).last_hidden_state
        return hidden[0]


def pool(hidden: torch.Tensor, pack: Pack, pooling: Pooling) -> torch.Tensor:
    """hidden [tokens, size] → float32 [sequences, size]."""
    if pooling == "last":
        return hidden[pack.last].float()
    if pooling == "cls":
        return hidden[pack.first].float()
    return torch.stack([sequence.mean(0, dtype=torch.float32) for sequence in torch.split(hidden, pack.lengths)])


class EmbeddingModel:
    """Unit vectors: float32 [sequences, dimensions]."""

    def __init__(self, spec: ModelSpec, body: Body) -> None:
        assert spec.pooling is not None
        self.spec, self.layout, self.columns = spec, body.layout, spec.dimensions
        self._body = body
        self._pooling: Pooling = spec.pooling

    def __call__(self, pack: Pack) -> torch.Tensor:
        return normalize(pool(self._body(pack), pack, self._pooling), dim=1)


class LastPositionScorer:
    """One logit from the last token's hidden state and a float32 row: the head of a decoder used as a reranker.

    For a yes_no model the row is W[yes] − W[no] of the language-model head, and sigmoid(logit) is the softmax over the two (model card).
    """

    columns = 1

    def __init__(self, spec: ModelSpec, body: Body, head: torch.Tensor) -> None:
        self.spec, self.layout = spec, body.layout
        self._body = body
        self._head = head  # float32 [size]

    def __call__(self, pack: Pack) -> torch.Tensor:
        return (self._body(pack)[pack.last].float() @ self._head)[:, None]


class Classifier:
    """The one logit of an encoder's sequence-classification head, which looks at each sequence's first token.

    `pooler` comes before the head where the architecture has one (BERT); both take [sequences, 1, size], as if that token were the whole.
    """

    columns = 1

    def __init__(self, spec: ModelSpec, body: Body, pooler: torch.nn.Module | None, head: torch.nn.Module) -> None:
        self.spec, self.layout = spec, body.layout
        self._body, self._pooler, self._head = body, pooler, head

    def __call__(self, pack: Pack) -> torch.Tensor:
        first = self._body(pack)[pack.first][:, None]
        logits: torch.Tensor = self._head(first if self._pooler is None else self._pooler(first))
        return logits[:, :1].float()
