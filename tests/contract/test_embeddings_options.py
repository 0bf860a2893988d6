"""POST /v1/embeddings: every option beside `input`, on a model without prompts (test_prompts.py has one with)."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import numpy as np
import pytest
from tokenizers import Tokenizer

from tests.support.texts import prose
from tests.support.wire import assert_error, close, embed, metric, vectors

LONG = prose(600, seed=1)  # MiniLM takes 256 tokens
LIMIT = 256

FOREIGN = [
    "hf:ggml-org/embeddinggemma-300M-GGUF/embeddinggemma-300M-Q8_0.gguf", "Qwen/Qwen3-Embedding-4B", "embeddinggemma", "nomic-embed",
    "text-embedding-3-small", "", "no/such model \u2603",
]  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_any_model_name_is_answered_by_the_served_model(client: httpx.Client, minilm: str, name: str) -> None:
    answer = client.post("/v1/embeddings", json={"input": "one note", "model": name})
    assert close(vectors(answer), embed(client, "one note"))
    assert answer.json()["model"] == minilm


@pytest.mark.parametrize("alias", ["default", "embed", "qmd-embed"])
def test_a_configured_alias_is_echoed(client: httpx.Client, alias: str) -> None:
    answer = client.post("/v1/embeddings", json={"input": "one note", "model": alias})
    assert answer.json()["model"] == alias


@pytest.mark.parametrize("text", ["", "one note", prose(100), "caf\u00e9 \u65e5\u672c\u8a9e"])
def test_base64_is_float_bit_for_bit(client: httpx.Client, text: str) -> None:
    """One text a request: with neighbours, the last bits depend on who they were."""
    bits, floats = (client.post("/v1/embeddings", json={"input": text, "encoding_format": form}) for form in ("base64", "float"))
    encoded = bits.json()["data"][0]["embedding"]
    assert isinstance(encoded, str)
    assert base64.b64decode(encoded, validate=True) == vectors(floats).astype("<f4").tobytes()
    assert {k: v for k, v in bits.json().items() if k != "data"} == {k: v for k, v in floats.json().items() if k != "data"}


def test_float_is_the_default(client: httpx.Client) -> None:
    body = client.post("/v1/embeddings", json={"input": "x"}).json()
    assert isinstance(body["data"][0]["embedding"], list)


@pytest.mark.parametrize("value", ["binary", "FLOAT64", "", 3, True, []], ids=repr)
def test_a_wrong_encoding_format_is_400(client: httpx.Client, value: Any) -> None:
    assert_error(client.post("/v1/embeddings", json={"input": "x", "encoding_format": value}), 400, "encoding_format")


@pytest.mark.parametrize("encoding", ["float", "base64"])
@pytest.mark.parametrize("dimensions", [1, 2, 100, 256, 383, 384])
def test_dimensions_cut_and_renormalise(client: httpx.Client, dimensions: int, encoding: str) -> None:
    texts = ["one note", prose(50), "third"]
    whole = embed(client, texts).astype(np.float64)
    cut = whole[:, :dimensions]
    expected = cut / np.linalg.norm(cut, axis=1, keepdims=True)
    got = embed(client, texts, dimensions=dimensions, encoding_format=encoding)
    assert got.shape == (3, dimensions)
    assert close(got, expected, 1e-6)


@pytest.mark.parametrize("value", [0, -1, 385, 2560, 10**30, 1.5, "128", True, []], ids=repr)
def test_wrong_dimensions_are_400(client: httpx.Client, value: Any) -> None:
    assert_error(client.post("/v1/embeddings", json={"input": "x", "dimensions": value}), 400, "dimensions")


INPUT_TYPES = ["query", "document", "search_query", "search_document", "passage", "classification", "clustering"]


@pytest.mark.parametrize("value", INPUT_TYPES)
def test_input_type_spellings_are_accepted(client: httpx.Client, value: str) -> None:
    assert close(embed(client, "one note", input_type=value), embed(client, "one note"))  # MiniLM has no prompts


def test_a_wrong_input_type_is_400(client: httpx.Client) -> None:
    assert_error(client.post("/v1/embeddings", json={"input": "x", "input_type": "poem"}), 400, "input_type")
    assert_error(client.post("/v1/embeddings", json={"input": "x", "input_type": 3}), 400, "input_type")


def test_an_unknown_prompt_name_is_400_and_says_what_there_is(client: httpx.Client) -> None:
    assert_error(client.post("/v1/embeddings", json={"input": "x", "prompt_name": "poem"}), 400, "prompt_name", "poem")


def test_instruction_is_accepted(client: httpx.Client) -> None:
    assert embed(client, "one note", instruction="Find notes about networks").shape == (1, 384)
    assert_error(client.post("/v1/embeddings", json={"input": "x", "instruction": ["x"]}), 400, "instruction")


def cut_ids(tokenizer: Tokenizer, text: str, limit: int, side: str = "right") -> list[int]:
    """`limit` ids of `text`, [CLS] and [SEP] kept."""
    ids = tokenizer.encode(text).ids
    return [ids[0], *(ids[1 : limit - 1] if side == "right" else ids[-(limit - 1) : -1]), ids[-1]]


@pytest.mark.parametrize("fields", [{}, {"truncate": True}, {"truncate": "END"}, {"truncate": "end"}, {"truncate": None}], ids=repr)
def test_a_long_text_is_cut_at_its_end_and_counted(client: httpx.Client, tokenizer: Tokenizer, fields: dict[str, Any]) -> None:
    before = metric(client, "embed_truncated_inputs_total", role="embed")
    answer = client.post("/v1/embeddings", json={"input": ["short", LONG], **fields})
    assert close(vectors(answer)[1:], embed(client, cut_ids(tokenizer, LONG, LIMIT)))
    assert answer.json()["usage"]["prompt_tokens"] == 3 + LIMIT
    assert answer.json()["usage"]["truncated_inputs"] == 1
    assert answer.headers["x-truncated-inputs"] == "1"
    assert metric(client, "embed_truncated_inputs_total", role="embed") == before + 1


def test_a_text_of_just_the_limit_is_not_cut(client: httpx.Client) -> None:
    answer = client.post("/v1/embeddings", json={"input": [prose(254, 3).replace(".", "")], "truncate": False})
    assert answer.json()["usage"]["prompt_tokens"] == LIMIT
    assert answer.headers["x-truncated-inputs"] == "0"


@pytest.mark.parametrize("value", ["START", "start"])
def test_truncate_start_keeps_the_end(client: httpx.Client, tokenizer: Tokenizer, value: str) -> None:
    expected = embed(client, cut_ids(tokenizer, LONG, LIMIT, "left"))
    assert close(embed(client, LONG, truncate=value), expected)
    assert not close(expected, embed(client, LONG), 1e-3)


@pytest.mark.parametrize("value", [False, "NONE", "none"], ids=repr)
def test_without_truncation_a_long_text_is_400(client: httpx.Client, value: Any) -> None:
    answer = client.post("/v1/embeddings", json={"input": ["short", LONG], "truncate": value})
    assert_error(answer, 400, "maximum context length", "256", "input[1]")
    assert embed(client, ["short"], truncate=value).shape == (1, 384)


@pytest.mark.parametrize("value", ["MIDDLE", 3, []], ids=repr)
def test_a_wrong_truncate_is_400(client: httpx.Client, value: Any) -> None:
    assert_error(client.post("/v1/embeddings", json={"input": "x", "truncate": value}), 400, "truncate")


@pytest.mark.parametrize("limit", [3, 16, 255])
def test_truncate_prompt_tokens(client: httpx.Client, tokenizer: Tokenizer, limit: int) -> None:
    answer = client.post("/v1/embeddings", json={"input": LONG, "truncate_prompt_tokens": limit})
    assert answer.json()["usage"]["prompt_tokens"] == limit
    assert close(vectors(answer), embed(client, cut_ids(tokenizer, LONG, limit)))


@pytest.mark.parametrize("limit", [-1, 256, 8_192, 100_000])
def test_truncate_prompt_tokens_past_the_models_limit_is_the_limit(client: httpx.Client, limit: int) -> None:
    answer = client.post("/v1/embeddings", json={"input": LONG, "truncate_prompt_tokens": limit})
    assert answer.json()["usage"]["prompt_tokens"] == LIMIT
    assert close(vectors(answer), embed(client, LONG))


@pytest.mark.parametrize("value", [0, -2, "16", 1.5], ids=repr)
def test_wrong_truncate_prompt_tokens_are_400(client: httpx.Client, value: Any) -> None:
    assert_error(client.post("/v1/embeddings", json={"input": "x", "truncate_prompt_tokens": value}), 400, "truncate_prompt_tokens")


def test_long_ids_are_cut_too(client: httpx.Client, tokenizer: Tokenizer) -> None:
    answer = client.post("/v1/embeddings", json={"input": tokenizer.encode(LONG).ids})
    assert answer.json()["usage"]["prompt_tokens"] == LIMIT
    assert answer.headers["x-truncated-inputs"] == "1"
    assert_error(
        client.post("/v1/embeddings", json={"input": tokenizer.encode(LONG).ids, "truncate": False}), 400, "maximum context length"
    )


def test_long_ids_are_cut_at_the_side_asked_for(client: httpx.Client, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(LONG).ids
    assert close(embed(client, ids), embed(client, cut_ids(tokenizer, LONG, LIMIT)))
    assert close(embed(client, ids, truncate="START"), embed(client, cut_ids(tokenizer, LONG, LIMIT, "left")))
    assert close(embed(client, [ids], truncate_prompt_tokens=16), embed(client, cut_ids(tokenizer, LONG, 16)))


def test_unknown_fields_are_ignored(client: httpx.Client) -> None:
    extra = {"user": "me", "late_chunking": True, "normalized": False, "embedding_type": "float", "priority": 1, "x": {"y": [None]}}
    assert close(embed(client, "one note", **extra), embed(client, "one note"))


def test_null_is_as_good_as_absent(client: httpx.Client) -> None:
    nulls = dict.fromkeys(
        ("model", "encoding_format", "dimensions", "input_type", "prompt_name", "instruction", "truncate_prompt_tokens", "truncate", "user")
    )
    assert close(embed(client, "one note", **nulls), embed(client, "one note"))


@pytest.mark.parametrize("value", [3, ["x"], {}, True], ids=repr)
def test_any_value_of_model_is_answered(client: httpx.Client, minilm: str, value: Any) -> None:
    assert client.post("/v1/embeddings", json={"input": "x", "model": value}).json()["model"] == minilm
