"""POST /v1/embeddings: what `input` may be, and what is said of what it may not."""

from __future__ import annotations

from typing import Any

import httpx
import numpy as np
import pytest
from tokenizers import Tokenizer

from tests.support.texts import prose
from tests.support.wire import assert_error, close, embed, metric, vectors

TEXT = "The tailnet gives every machine a private name."


def test_four_forms_of_the_same_text_are_one_vector(client: httpx.Client, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT).ids
    string = embed(client, TEXT)
    for form in ([TEXT], ids, [ids]):
        assert close(embed(client, form), string)


def test_ids_of_tokenize_are_the_texts_vector(client: httpx.Client) -> None:
    ids = client.post("/tokenize", json={"input": TEXT}).json()["tokens"]
    assert close(embed(client, ids), embed(client, TEXT))


def test_ids_are_used_as_they_are(client: httpx.Client, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("one two three four").ids
    swapped = [ids[0], ids[2], ids[1], *ids[3:]]
    assert close(embed(client, swapped), embed(client, "two one three four"))
    assert not close(embed(client, ids), embed(client, swapped), 1e-3)


@pytest.mark.parametrize("count", [1, 2, 9, 64, 65, 250])
def test_count_in_count_out(client: httpx.Client, count: int) -> None:
    body = client.post("/v1/embeddings", json={"input": [f"note {n}" for n in range(count)]}).json()
    assert [d["index"] for d in body["data"]] == list(range(count))


def test_2048_items_are_split_inside_and_come_back_in_order(client: httpx.Client) -> None:
    texts = [f"note {n} about {prose(n % 7 + 1, n)}" for n in range(2_048)]
    all_of_them = embed(client, texts, encoding_format="base64")
    assert all_of_them.shape == (2_048, 384)
    probes = [0, 1, 63, 64, 65, 1_000, 2_046, 2_047]
    for n in probes:
        assert close(all_of_them[n : n + 1], embed(client, texts[n]))
    assert len(np.unique(all_of_them.round(6), axis=0)) == 2_048


def test_2048_lists_of_ids(client: httpx.Client) -> None:
    assert embed(client, [[101, 2_000 + n, 102] for n in range(2_048)], encoding_format="base64").shape == (2_048, 384)


def test_more_than_2048_items_is_400(client: httpx.Client) -> None:
    assert_error(client.post("/v1/embeddings", json={"input": ["x"] * 2_049}), 400, "input", "2048")


def test_an_empty_string_is_answered(client: httpx.Client, tokenizer: Tokenizer) -> None:
    empty = embed(client, "")
    assert close(empty, embed(client, tokenizer.encode("").ids))
    assert close(np.linalg.norm(empty, axis=1), 1)


def test_an_empty_string_does_not_cost_its_neighbours(client: httpx.Client) -> None:
    texts = [prose(20, n) for n in range(32)]
    whole = embed(client, texts)
    blank = embed(client, [*texts[:7], "", *texts[8:]])
    keep = [n for n in range(32) if n != 7]
    assert close(blank[keep], whole[keep])
    assert close(blank[7:8], embed(client, ""))


@pytest.mark.parametrize("text", ["", " ", "\n\n", "\t", "\u200b", "\u3000"], ids=repr)
def test_blank_texts(client: httpx.Client, text: str) -> None:
    assert close(np.linalg.norm(embed(client, [text, "a"]), axis=1), 1)


WRONG: list[tuple[str, Any, tuple[str, ...]]] = [
    ("absent", ..., ("input",)),
    ("null", None, ("input",)),
    ("number", 3, ("input",)),
    ("true", True, ("input",)),
    ("object", {"text": "x"}, ("input",)),
    ("empty list", [], ("input", "empty")),
    ("empty list of ids", [[1, 2], []], ("input[1]",)),
    ("null inside", ["a", None], ("input[1]",)),
    ("number among strings", ["a", "b", 3], ("input[2]",)),
    ("string among ids", [101, "a"], ("input[1]",)),
    ("list among strings", ["a", [1]], ("input[1]",)),
    ("string among lists", [[1], "a"], ("input[1]",)),
    ("object inside", [{"text": "a"}], ("input[0]",)),
    ("fraction", [101, 1.5], ("input[1]",)),
    ("true among ids", [101, True], ("input[1]",)),
    ("string in a list of ids", [[101], [101, "a"]], ("input[1][1]",)),
    ("deeper", [[[1]]], ("input[0][0]",)),
]


@pytest.mark.parametrize(("value", "names"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_a_wrong_input_is_400_and_names_the_place(client: httpx.Client, value: Any, names: tuple[str, ...]) -> None:
    assert_error(client.post("/v1/embeddings", json={} if value is ... else {"input": value}), 400, *names)


@pytest.mark.parametrize("wrong", [-1, 30_522, 2**31, 2**63, 10**30], ids=str)
@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
def test_an_id_outside_the_vocabulary_is_400_and_names_its_index(client: httpx.Client, wrong: int, nested: bool) -> None:
    value: Any = [[101, 102], [101, 2_000, wrong, 102]] if nested else [101, 2_000, wrong, 102]
    assert_error(client.post("/v1/embeddings", json={"input": value}), 400, "input[1][2]" if nested else "input[2]")
    edge: Any = [101, 30_521, 102]
    assert embed(client, edge).shape == (1, 384)


def test_usage_is_the_real_number_of_tokens(client: httpx.Client, tokenizer: Tokenizer) -> None:
    texts = ["one", "two words", prose(100), "déjà vu, naïve café", "日本語のテキスト", ""]
    body = client.post("/v1/embeddings", json={"input": texts}).json()
    real = sum(len(tokenizer.encode(t).ids) for t in texts)
    assert body["usage"] == {"prompt_tokens": real, "total_tokens": real}


def test_computed_tokens_are_usage(client: httpx.Client) -> None:
    before = metric(client, "embed_computed_tokens_total", role="embed")
    answer = client.post("/v1/embeddings", json={"input": [prose(n, n) for n in range(1, 40)]})
    assert metric(client, "embed_computed_tokens_total", role="embed") - before == answer.json()["usage"]["total_tokens"]


@pytest.mark.parametrize(
    "text", ["x" * 1_000_000, "é" * 500_000, "word " * 200_000, "日本" * 100_000], ids=["word", "accents", "words", "cjk"]
)
def test_a_megabyte_in_one_text(client: httpx.Client, text: str) -> None:
    answer = client.post("/v1/embeddings", json={"input": ["small", text]})
    assert close(vectors(answer)[:1], embed(client, "small"))
    assert answer.json()["usage"]["prompt_tokens"] <= 3 + 256
