"""What is known of a served model without loading its weights."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["embed", "rerank"]
Kind = Literal["embedding", "yes_no", "classifier", "cosine"]
Pooling = Literal["last", "cls", "mean"]


@dataclass(frozen=True)
class ModelSpec:
    """One served model, as read from the JSON files of its repository.

    Kinds: `embedding` gives a unit vector; `yes_no` is a causal language model judged by the logits of "yes" and "no" at the last
    position; `classifier` has a sequence-classification head with one logit; `cosine` is the embedding model itself used to rerank
    (RERANK_MODEL = EMBED_MODEL), computed as two embeddings.
    """

    role: Role
    id: str  # as configured: a hub id or a folder
    revision: str  # commit of the hub, or "local-" + hash of the folder's files
    path: str  # folder that holds the files
    architecture: str  # config.json's model_type
    kind: Kind
    max_tokens: int  # longest sequence that is computed, special tokens included
    vocabulary: int  # ids are 0 … vocabulary-1
    recognised: bool = True  # False: runs on sentence-transformers
    dimensions: int = 0  # of an embedding
    pooling: Pooling | None = None
    prompts: dict[str, str] = field(default_factory=dict)  # "query", "document" and the repository's own names
    instruct: bool = False  # queries take "Instruct: {task}\nQuery:{text}" (Qwen3-Embedding)
    matryoshka_layer_norm: bool = False  # nomic: layer norm before the cut (model card)
    segments: bool = False  # the second text of a pair has token type 1 (BERT)
    yes_id: int = -1
    no_id: int = -1
    template_prefix: str = ""  # of a yes_no reranker
    template_suffix: str = ""
    template_instruction: str = ""
    quantization: str = "none"

    def to_wire(self) -> dict[str, Any]:
        """As a JSON object, for the message `described`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_wire(cls, fields: dict[str, Any]) -> ModelSpec:
        return cls(**fields)
