"""The true shapes of Qwen3-Embedding and Qwen3-Reranker, their models with random weights, and how much arithmetic a forward takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from embed_service.engine.attention import NAME, register
from embed_service.engine.sequences import Sequences
from embed_service.models.spec import Role


@dataclass(frozen=True)
class Shape:
    """A Qwen3 decoder, by the fields of its config.json (Qwen/Qwen3-Embedding-0.6B and -4B, Qwen/Qwen3-Reranker-0.6B and -4B)."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int

    @property
    def linear_parameters(self) -> int:
        """Weights of the linear layers: query and output, key and value, and the three of the feed-forward block."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def parameters(self) -> int:
        """All weights but the norms'. The embedding table is the language-model head's as well."""
        return self.linear_parameters + self.vocabulary * self.hidden

    @property
    def linears(self) -> list[tuple[int, int]]:
        """(in, out) of the linear layers of one layer."""
        wide, narrow = self.heads * self.head_dim, self.kv_heads * self.head_dim
        ours, up = (self.hidden, narrow), (self.hidden, self.intermediate)
        return [(self.hidden, wide), ours, ours, (wide, self.hidden), up, up, up[::-1]]


# The rerankers differ from these by the vocabulary alone (151,669 for 4B), which no matrix product of theirs here depends on.
QWEN3_4B = Shape("Qwen3 4B", 36, 2560, 32, 8, 128, 9728, 151_665)
QWEN3_06B = Shape("Qwen3 0.6B", 28, 1024, 16, 8, 128, 3072, 151_669)
SHAPES = {"4B": QWEN3_4B, "0.6B": QWEN3_06B}


def tiny(shape: Shape, layers: int) -> Shape:
    """The same in small, for trying the code on a CPU."""
    return replace(shape, layers=layers, hidden=64, heads=4, kv_heads=2, head_dim=16, intermediate=128, vocabulary=1000)


@dataclass(frozen=True)
class Work:
    """One request. `own`: tokens of each text; before each stand the same `prefix` tokens."""

    name: str
    role: Role
    own: tuple[int, ...]
    prefix: int = 0

    @property
    def tokens(self) -> int:
        """As a client counts them: each text with its prefix."""
        return sum(self.own) + self.prefix * len(self.own)

    def smaller(self, times: int) -> Work:
        return replace(self, own=tuple(max(2, own // times) for own in self.own), prefix=self.prefix // times)

    def sequences(self, vocabulary: int, seed: int) -> Sequences:
        """Random ids. Another seed gives other ids, so that nothing can be answered from what the last one left."""
        generator = np.random.default_rng(seed)
        shared = generator.integers(0, vocabulary, self.prefix, np.int32)
        pieces = [np.concatenate([shared, generator.integers(0, vocabulary, own, np.int32)]) for own in self.own]
        return Sequences.of(pieces, prefix=[self.prefix] * len(pieces))


def _around(mean: int, count: int, spread: float) -> tuple[int, ...]:
    """`count` lengths from (1 − spread) to (1 + spread) times `mean`, evenly, in an order without a pattern."""
    lengths = np.linspace(mean * (1 - spread), mean * (1 + spread), count).round().astype(int)
    return tuple(int(n) for n in np.random.default_rng(0).permutation(lengths))


EMBED = Work("embed 32 × 600 tokens", "embed", (600,) * 32)
MIXED = Work("embed 32 × 100–1,100 tokens", "embed", _around(600, 32, 5 / 6))
RERANK_LONG = Work("rerank 40 × 900 tokens", "rerank", (800,) * 40, prefix=100)
RERANK_SHORT = Work("rerank 40 × 180 tokens", "rerank", (80,) * 40, prefix=100)
QUERY = Work("1 query of 16 tokens", "embed", (16,))
QUERIES = Work("8 queries of 16 tokens", "embed", (16,) * 8)
WORKS = (EMBED, MIXED, RERANK_LONG, RERANK_SHORT, QUERY, QUERIES)


def flops(shape: Shape, own: Sequence[int], prefix: int = 0, causal: bool = True) -> float:
    """Floating-point operations of a forward over sequences of `own` tokens that share `prefix` tokens, computed once.

    A linear layer takes a multiplication and an addition per weight and token: 2 × weights × tokens. Attention takes as many per head
    dimension for each score and again for each weighted value: 4 × heads × head_dim for each pair of a query and a key it may see, of which
    a causal sequence of n tokens has n(n + 1)/2 and any other n². (Kaplan et al., "Scaling Laws for Neural Language Models", 2020, table 1,
    with the mask taken into account.) Norms, rotary positions, activations and the embedding table are left out, as is customary.
    """
    tokens = prefix + sum(own)
    pairs = _pairs(prefix, causal) + sum(n * prefix + _pairs(n, causal) for n in own)
    return 2.0 * shape.linear_parameters * tokens + 4.0 * shape.layers * shape.heads * shape.head_dim * pairs


def _pairs(tokens: int, causal: bool) -> int:
    return tokens * (tokens + 1) // 2 if causal else tokens * tokens


def make_body(shape: Shape, device: str, dtype: torch.dtype, seed: int = 0) -> Any:
    """transformers' Qwen3Model in evaluation mode, its random weights made on the device: no file, nothing in the computer's memory."""
    from transformers import AutoModel, Qwen3Config

    register()
    config = Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=32_768,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        use_cache=False,
        initializer_range=shape.hidden**-0.5,  # a layer then neither dies away nor drowns the others, whatever the width
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(seed)
    with torch.device(device):
        return AutoModel.from_config(  # type: ignore[no-untyped-call]
            config, dtype=dtype, attn_implementation=NAME
        ).eval()


def bytes_needed(shape: Shape, tokens: int) -> int:
    """Device memory for weights in bfloat16 and for a pack of `tokens`, generously: some twenty activations of the feed-forward's width."""
    return 2 * shape.parameters + 2 * 20 * tokens * shape.intermediate + 2 * 10**9
