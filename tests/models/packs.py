"""Small checkpoints as packed models, and what transformers' own model says to one sequence alone."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from embed_service.engine import loader
from embed_service.engine.packed import PackedExecutor
from embed_service.engine.sequences import Int32
from embed_service.models.spec import Role
from tests.models import reference
from tests.models.engine import FLOAT32, spec_of
from tests.support.checkpoints import checkpoint

TOLERANCE = 1e-5
ARCHITECTURES: dict[str, Role] = {
    "qwen3-embedding": "embed", "nomic": "embed", "bge-base": "embed", "qwen3-reranker": "rerank", "qwen3-reranker-seq-cls": "rerank",
    "llama-chat": "rerank", "bge-reranker-base": "rerank", "bge-reranker-v2-m3": "rerank", "bert-cross-encoder": "rerank",
}  # fmt: skip


@lru_cache(maxsize=1)
def loaded(name: str) -> tuple[Any, Any, Any]:
    """(spec, its packed model, transformers' plain one)."""
    folder = checkpoint(name)
    spec = spec_of(ARCHITECTURES[name], folder)
    kinds = {"embedding": AutoModel, "yes_no": AutoModelForCausalLM, "classifier": AutoModelForSequenceClassification}
    config = {"config": reference.nomic_config(folder)} if name == "nomic" else {}
    plain = kinds[spec.kind].from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa", **config).eval()
    return spec, loader.load_model(spec, FLOAT32), plain


def executor(name: str, rows: int = 64, tokens: int = 1 << 20) -> PackedExecutor:
    spec, model, _ = loaded(name)
    return PackedExecutor({spec.role: model}, "cpu", rows, tokens)


@torch.inference_mode()
def alone(name: str, ids: Int32, second: int) -> NDArray[np.float32]:
    """What transformers' model says to one sequence: a unit vector, or a probability."""
    spec, _, plain = loaded(name)
    inputs = {"input_ids": torch.from_numpy(ids.astype(np.int64))[None]}
    if spec.segments:
        inputs["token_type_ids"] = (torch.arange(len(ids)) >= second).long()[None]
    if spec.kind == "embedding":
        return normalize(reference.POOLINGS[spec.pooling](plain(**inputs).last_hidden_state), dim=0).numpy()
    if spec.kind == "yes_no":
        logits = plain(**inputs, logits_to_keep=1).logits[0, -1]
        return (logits[spec.yes_id] - logits[spec.no_id]).sigmoid()[None].numpy()
    if spec.template_prefix:  # transformers' head for it looks for padding, of which there is none
        return plain.score(plain.model(**inputs).last_hidden_state[0, -1])[:1].sigmoid().numpy()
    return plain(**inputs).logits[0, :1].sigmoid().numpy()


def answers(name: str, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return rows if ARCHITECTURES[name] == "embed" else torch.from_numpy(rows).sigmoid().numpy()


def random_ids(count: int, vocabulary: int, seed: int) -> Int32:
    """Any ids of the vocabulary, the small ones, which are the special tokens, more often than by chance."""
    generator = np.random.default_rng(seed)
    ids = generator.integers(0, vocabulary, count, np.int32)
    return np.where(generator.random(count) < 0.05, generator.integers(0, 4, count, np.int32), ids)
