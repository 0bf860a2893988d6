"""What a model must answer, computed by plain transformers code: one text at a time, no padding, float32, its model card's recipe.

Nothing here imports the service.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import layer_norm, normalize
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

Vectors = NDArray[np.float32]
Hidden = Callable[[torch.Tensor], torch.Tensor]  # [1, tokens, size] → [size]

POOLINGS: dict[str, Hidden] = {
    "last": lambda hidden: hidden[0, -1],
    "cls": lambda hidden: hidden[0, 0],
    "mean": lambda hidden: hidden[0].mean(0),
}

# Model card of Qwen3-Reranker.
SYSTEM = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".'
)
PREFIX = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n"
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"


@lru_cache(maxsize=2)
def tokenizer_of(folder: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.no_truncation()  # MiniLM's file has a limit of 128 and padding to it
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


@torch.inference_mode()
def embed(folder: Path, texts: Sequence[str], pooling: str, max_tokens: int, config: Any = None) -> Vectors:
    """Unit vectors float32 [texts, dimensions]."""
    tokenizer = tokenizer_of(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, **({"config": config} if config else {})).eval()
    rows = []
    for text in texts:
        ids = tokenizer(text, truncation=True, max_length=max_tokens, return_tensors="pt")["input_ids"]
        rows.append(POOLINGS[pooling](model(input_ids=ids).last_hidden_state))
    return normalize(torch.stack(rows)).numpy()


def matryoshka(vectors: Vectors, dimensions: int, with_layer_norm: bool) -> Vectors:
    """Cut to `dimensions`. nomic's model card puts a layer norm over the whole vector before the cut."""
    whole = torch.from_numpy(vectors)
    if with_layer_norm:
        whole = layer_norm(whole, (whole.shape[1],))
    return normalize(whole[:, :dimensions]).numpy()


@torch.inference_mode()
def judge(
    folder: Path, query: str, documents: Sequence[str], max_tokens: int = 8192, instruction: str = INSTRUCTION, suffix: str = SUFFIX
) -> Vectors:
    """Qwen3-Reranker's recipe: softmax over the logits of "no" and "yes" at the last position; float32 [documents]."""
    tokenizer = tokenizer_of(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    yes, no = tokenizer.convert_tokens_to_ids("yes"), tokenizer.convert_tokens_to_ids("no")
    before, after = (tokenizer.encode(part, add_special_tokens=False) for part in (PREFIX, suffix))
    scores = []
    for document in documents:
        body = f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}"
        ids = tokenizer.encode(body, add_special_tokens=False)[: max_tokens - len(before) - len(after)]
        logits = model(torch.tensor([before + ids + after]), logits_to_keep=1).logits[0, -1]
        scores.append(logits[[no, yes]].softmax(0)[1].item())
    return np.array(scores, np.float32)


@torch.inference_mode()
def cross_encode(folder: Path, query: str, documents: Sequence[str], max_tokens: int) -> Vectors:
    """sigmoid of the one logit of a pair, the document cut first; float32 [documents]."""
    tokenizer = tokenizer_of(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    scores = []
    for document in documents:
        inputs = tokenizer(query, document, truncation="only_second", max_length=max_tokens, return_tensors="pt")
        scores.append(model(**inputs).logits[0, 0].sigmoid().item())
    return np.array(scores, np.float32)


def nomic_config(folder: Path) -> Any:
    """transformers' configuration for a repository whose config.json has the old names."""
    from transformers import NomicBertConfig

    old = json.loads((folder / "config.json").read_text())
    return NomicBertConfig(
        vocab_size=old["vocab_size"],
        hidden_size=old["n_embd"],
        num_hidden_layers=old["n_layer"],
        num_attention_heads=old["n_head"],
        intermediate_size=old["n_inner"],
        max_position_embeddings=old["n_positions"],
    )


def own_prompts(folder: Path) -> dict[str, str]:
    """The prompts that the repository itself names."""
    file = folder / "config_sentence_transformers.json"
    return json.loads(file.read_text()).get("prompts") or {} if file.is_file() else {}
