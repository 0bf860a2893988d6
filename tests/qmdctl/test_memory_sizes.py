"""Sizes of models from their config.json, against transformers' own model classes (on torch's meta device: shapes without memory)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from qmdctl.errors import ConfigurationError
from qmdctl.models.known import KNOWN
from qmdctl.models.size import activation_bytes, kv_bytes_per_token, parameters, weight_bytes

# What the hub serves: bytes of the safetensors, or of their tensors (total_size) where there are several files.
PUBLISHED_BYTES = {
    "Qwen/Qwen3-Embedding-0.6B": 1_191_586_416,
    "Qwen/Qwen3-4B": 8_044_936_192,
    "Qwen/Qwen3-8B": 16_381_470_720,
    "nomic-ai/nomic-embed-text-v1.5": 546_938_168,
    "BAAI/bge-base-en-v1.5": 437_955_512,
    "BAAI/bge-reranker-v2-m3": 2_271_071_852,
}


def reference(config: dict[str, Any]) -> int:
    """Parameters that transformers makes from the same fields; tied ones once."""
    fields = {k: v for k, v in config.items() if k not in ("download_bytes", "quantization_config", "dtype")}
    real = AutoConfig.for_model(fields.pop("model_type"), **fields)
    architecture = config["architectures"][0]
    auto: Any = AutoModel
    if architecture.endswith("ForCausalLM"):
        auto = AutoModelForCausalLM
    elif architecture.endswith("ForSequenceClassification"):
        auto = AutoModelForSequenceClassification
    with torch.device("meta"):
        model = auto.from_config(real)
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("model", KNOWN)
def test_parameters_are_those_of_transformers(model: str) -> None:
    assert sum(parameters(KNOWN[model])) == pytest.approx(reference(KNOWN[model]), rel=0.001)


@pytest.mark.parametrize("model", PUBLISHED_BYTES)
def test_bytes_are_within_five_percent_of_the_published_files(model: str) -> None:
    config = KNOWN[model]
    assert weight_bytes(config, config["dtype"]) == pytest.approx(PUBLISHED_BYTES[model], rel=0.05)


def test_kv_cache_of_qwen3_4b_is_144_kib_a_token() -> None:
    assert kv_bytes_per_token(KNOWN["Qwen/Qwen3-4B"]) == 144 * 1024
    assert kv_bytes_per_token(KNOWN["Qwen/Qwen3-4B"], "float32") == 288 * 1024


def test_a_quantised_model_keeps_its_precision_and_its_embedding_in_bf16() -> None:
    whole = weight_bytes(KNOWN["Qwen/Qwen3-4B"])
    fp8, awq = weight_bytes(KNOWN["Qwen/Qwen3-4B-FP8"]), weight_bytes(KNOWN["Qwen/Qwen3-4B-AWQ"])
    assert awq < fp8 < whole
    assert awq == pytest.approx(2.67e9, rel=0.01)  # the published file
    assert fp8 == pytest.approx(4.41e9, rel=0.02)


def test_an_unknown_architecture_is_refused_with_a_way_out() -> None:
    with pytest.raises(ConfigurationError, match="architecture 'mamba'") as caught:
        parameters({"model_type": "mamba"})
    assert ".env" in caught.value.fix


def test_a_config_without_a_needed_field_names_it() -> None:
    with pytest.raises(ConfigurationError, match="no vocab_size"):
        parameters({"model_type": "qwen3", "hidden_size": 8, "num_hidden_layers": 1})


def test_activations_grow_with_tokens_and_precision() -> None:
    config = KNOWN["Qwen/Qwen3-4B"]
    assert activation_bytes(config, 2_000) == 2 * activation_bytes(config, 1_000)
    assert activation_bytes(config, 1_000, "float32") == 2 * activation_bytes(config, 1_000)


# The sizes in the config.json that the hub serves for nomic-embed-text-v1.5.
NOMIC_PUBLISHED = {
    "model_type": "nomic_bert",
    "architectures": ["NomicBertModel"],
    "n_embd": 768,
    "n_head": 12,
    "n_inner": 3072,
    "n_layer": 12,
    "n_positions": 8192,
    "type_vocab_size": 2,
    "vocab_size": 30528,
}


def test_gpt2s_names_are_read_as_the_others() -> None:
    known = KNOWN["nomic-ai/nomic-embed-text-v1.5"]
    assert parameters(NOMIC_PUBLISHED) == parameters(known)
    assert activation_bytes(NOMIC_PUBLISHED, 1_000) == activation_bytes(known, 1_000)
    assert kv_bytes_per_token(NOMIC_PUBLISHED) == kv_bytes_per_token(known)


@pytest.mark.parametrize("value", [None, "768", 0])
def test_a_field_that_is_no_number_is_named(value: object) -> None:
    config = {**NOMIC_PUBLISHED, "n_embd": value}
    with pytest.raises(ConfigurationError, match="no hidden_size"):
        activation_bytes(config, 1_000)


def test_a_precision_that_is_not_known_is_named() -> None:
    with pytest.raises(ConfigurationError, match="'fp16' is not a precision"):
        weight_bytes(KNOWN["Qwen/Qwen3-4B"], "fp16")
