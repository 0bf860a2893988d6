"""What is known of each architecture that the engine computes itself: one row per `model_type` of config.json.

The model's code is transformers' own; a row only says how its output is used.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from embed_service.models.spec import Kind, Pooling

# Model card of Qwen3-Embedding: the task that queries are prefixed with when nobody gives another.
QWEN3_TASK = "Given a web search query, retrieve relevant passages that answer the query"
# Model card of Qwen3-Reranker: the text around the body "<Instruct>: …\n<Query>: …\n<Document>: …".
JUDGE_PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
JUDGE_SUFFIX = "<|im_end|>\n<|im_start|>assistant\n"
NO_THINKING = "<think>\n\n</think>\n\n"


@dataclass(frozen=True)
class Architecture:
    """`pooling` applies where the repository has no 1_Pooling/config.json; `prompts` where it names none."""

    pooling: Pooling
    kinds: frozenset[Kind]
    prompts: dict[str, str] = field(default_factory=dict)
    causal: bool = False  # a token sees only those before it
    instruct: bool = False  # queries take "Instruct: {task}\nQuery:{text}"
    thinks: bool = False  # the judge's template ends with an empty <think> block
    matryoshka_layer_norm: bool = False
    segments: bool = False  # the second text of a pair has token type 1
    reserved_positions: int = 0  # of max_position_embeddings, not usable by tokens
    pooler: bool = False  # transformers' model has a pooler that embeddings do not use


ARCHITECTURES: dict[str, Architecture] = {
    "qwen3": Architecture(
        pooling="last",
        kinds=frozenset({"embedding", "yes_no", "classifier"}),
        prompts={"query": f"Instruct: {QWEN3_TASK}\nQuery:"},
        causal=True,
        instruct=True,
        thinks=True,
    ),
    "llama": Architecture(pooling="last", kinds=frozenset({"yes_no"}), causal=True),
    "bert": Architecture(pooling="mean", kinds=frozenset({"embedding", "classifier"}), segments=True, pooler=True),
    "roberta": Architecture(pooling="mean", kinds=frozenset({"embedding", "classifier"}), reserved_positions=2, pooler=True),
    "xlm-roberta": Architecture(pooling="mean", kinds=frozenset({"embedding", "classifier"}), reserved_positions=2, pooler=True),
    # Model card of nomic-embed-text-v1.5: task prefixes; layer norm before the Matryoshka cut.
    "nomic_bert": Architecture(
        pooling="mean",
        kinds=frozenset({"embedding"}),
        prompts={"query": "search_query: ", "document": "search_document: "},
        matryoshka_layer_norm=True,
    ),
}
