"""From a config.json to parameters, bytes of weights and bytes of KV cache per token.

The formulas count the tensors of transformers' own model classes (a test compares them): no model library is needed on the host.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qmdctl.errors import ConfigurationError

Config = Mapping[str, Any]
BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "half": 2, "float": 4}
DECODERS = frozenset({"qwen2", "qwen3", "llama", "mistral"})
ENCODERS = frozenset({"bert", "roberta", "xlm-roberta"})
# GPT-2's names, which nomic-embed-text publishes.
OTHER_NAMES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "n_inner",
}


def parameters(config: Config) -> tuple[int, int]:
    """(parameters of the linear layers of the blocks, all others). Quantisation stores the first in fewer bits.

    Raises ConfigurationError for an architecture that is not known here, and for a field that is missing.
    """
    kind = str(config.get("model_type", ""))
    if kind in DECODERS:
        return _decoder(config)
    if kind in ENCODERS:
        return _encoder(config)
    if kind == "nomic_bert":
        return _nomic(config)
    raise ConfigurationError(f"the size of an architecture {kind!r} is not known", "give the memory figures by hand in .env")


def number(config: Config, key: str) -> int:
    """A field that sizes follow from. ConfigurationError, which names it, where it is missing or no number."""
    value = config.get(key) or config.get(OTHER_NAMES.get(key, key))
    if isinstance(value, int) and value > 0:
        return value
    raise ConfigurationError(f"its config.json has no {key}", "choose another model")


def type_bytes(dtype: str) -> int:
    """Bytes of one number. ConfigurationError for a type that is not in BYTES."""
    if dtype not in BYTES:
        raise ConfigurationError(f"{dtype!r} is not a precision that is known here", f"choose one of {', '.join(BYTES)}")
    return BYTES[dtype]


def weight_bytes(config: Config, dtype: str = "bfloat16") -> int:
    """Bytes of the weights in memory. `dtype` is bfloat16, float16 or float32; a quantised checkpoint keeps its own precision.

    Quantised, per weight of a block's linear layer: GPTQ and AWQ take `bits`, and per group a scale of 2 bytes and a zero point of
    `bits`; block FP8 takes a byte and a scale of 4 bytes per block of 128 × 128 (the formats' documentation).
    """
    linear, other = parameters(config)
    width = type_bytes(dtype)
    quantization = config.get("quantization_config")
    if not isinstance(quantization, Mapping):
        return (linear + other) * width
    method = str(quantization.get("quant_method", ""))
    if method in ("awq", "gptq"):
        bits = int(quantization.get("bits", 4))
        group = int(quantization.get("group_size", 128))
        return int(linear * (bits / 8 + (2 + bits / 8) / group)) + other * width
    if method == "fp8":
        rows, columns = quantization.get("weight_block_size") or (128, 128)
        return int(linear * (1 + 4 / (rows * columns))) + other * width
    raise ConfigurationError(f"the size of a model quantised with {method!r} is not known", "give the memory figures by hand in .env")


def kv_bytes_per_token(config: Config, dtype: str = "bfloat16") -> int:
    """layers × 2 (keys and values) × key/value heads × head dimension × bytes of the type."""
    return number(config, "num_hidden_layers") * 2 * key_value_heads(config) * head_dimension(config) * type_bytes(dtype)


def key_value_heads(config: Config) -> int:
    return int(config.get("num_key_value_heads") or number(config, "num_attention_heads"))


def head_dimension(config: Config) -> int:
    return int(config.get("head_dim") or number(config, "hidden_size") // number(config, "num_attention_heads"))


def activation_bytes(config: Config, tokens: int, dtype: str = "bfloat16") -> int:
    """An estimate of the largest set of activations alive at once while `tokens` positions go through one block.

    Per position: the residual, its normalised copy and a block's output (3 × hidden), queries, keys, values and the attention's output
    (2 × heads and 2 × key/value heads, each × head dimension), and the gate, the up projection and their product (3 × intermediate).
    """
    heads = number(config, "num_attention_heads") + key_value_heads(config)
    width = 3 * number(config, "hidden_size") + 2 * heads * head_dimension(config) + 3 * number(config, "intermediate_size")
    return tokens * width * type_bytes(dtype)


def _decoder(config: Config) -> tuple[int, int]:
    hidden, layers, vocabulary = (number(config, key) for key in ("hidden_size", "num_hidden_layers", "vocab_size"))
    heads, kind = number(config, "num_attention_heads"), str(config["model_type"])
    kv_heads, head = key_value_heads(config), head_dimension(config)
    projections = hidden * head * (2 * heads + 2 * kv_heads)
    linear = layers * (projections + 3 * hidden * number(config, "intermediate_size"))
    norms = layers * 2 * hidden + hidden
    if kind == "qwen3":
        norms += layers * 2 * head
    if kind == "qwen2" or config.get("attention_bias"):
        norms += layers * head * (heads + 2 * kv_heads)
    if kind != "qwen2" and config.get("attention_bias"):
        norms += layers * hidden
    # Served as an embedding model it has no head; a tied one costs nothing.
    headless = str((config.get("architectures") or [""])[0]).endswith("Model")
    tied = bool(config.get("tie_word_embeddings", True)) or headless
    return linear, norms + vocabulary * hidden * (1 if tied else 2)


def _encoder(config: Config) -> tuple[int, int]:
    hidden, layers = number(config, "hidden_size"), number(config, "num_hidden_layers")
    inner = number(config, "intermediate_size")
    linear = layers * (4 * hidden * hidden + 2 * hidden * inner)
    per_layer = 4 * hidden + hidden + inner + 4 * hidden  # biases, two layer norms
    rows = number(config, "vocab_size") + number(config, "max_position_embeddings") + int(config.get("type_vocab_size", 2))
    other = rows * hidden + 2 * hidden + layers * per_layer
    architecture = str((config.get("architectures") or [""])[0])
    if architecture.endswith("ForSequenceClassification"):
        # BERT's pooler, or RoBERTa's dense layer of the head; then one row per label.
        labels = len(config["id2label"]) if isinstance(config.get("id2label"), Mapping) else int(config.get("num_labels", 2))
        other += hidden * hidden + hidden + labels * (hidden + 1)
    else:
        other += hidden * hidden + hidden  # the pooler
    return linear, other


def _nomic(config: Config) -> tuple[int, int]:
    """nomic-embed-text: rotary positions, SwiGLU, no biases."""
    hidden, layers = number(config, "hidden_size"), number(config, "num_hidden_layers")
    inner = number(config, "intermediate_size")
    linear = layers * (4 * hidden * hidden + 3 * hidden * inner)
    rows = number(config, "vocab_size") + int(config.get("type_vocab_size", 2))
    return linear, rows * hidden + 2 * hidden + layers * 4 * hidden
