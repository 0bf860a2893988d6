"""POST /v1/score (vLLM's shape), /tokenize and /detokenize."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer

from tests.support.texts import LONE_HIGH, PLANETS, RED_PLANET, REPLACEMENT
from tests.support.wire import assert_error, close, computed_tokens, rerank, scores


def pair_scores(client: httpx.Client, body: dict[str, Any]) -> list[float]:
    answer = client.post("/v1/score", json=body)
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    assert [d["index"] for d in data] == list(range(len(data)))
    return [d["score"] for d in data]


def test_the_form_of_score(client: httpx.Client, minilm: str) -> None:
    body = client.post("/v1/score", json={"text_1": RED_PLANET, "text_2": PLANETS}).json()
    assert body.keys() >= {"id", "object", "created", "model", "data", "usage"}
    assert body["object"] == "list"
    assert body["model"] == minilm
    assert [set(d) for d in body["data"]] == [{"index", "object", "score"}] * 4
    assert {d["object"] for d in body["data"]} == {"score"}
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] > 0


@pytest.mark.parametrize(("asked", "answered"), [("qmd-rerank", "qmd-rerank"), ("rerank", "rerank"), ("x", None), (None, None)])
def test_score_echoes_an_alias(client: httpx.Client, minilm: str, asked: str | None, answered: str | None) -> None:
    body = client.post("/v1/score", json={"text_1": "q", "text_2": "d", "model": asked}).json()
    assert body["model"] == (answered or minilm)


@pytest.mark.parametrize(("first", "second"), [("text_1", "text_2"), ("queries", "documents"), ("data_1", "data_2")])
def test_one_to_many_is_rerank_in_document_order(client: httpx.Client, first: str, second: str) -> None:
    expected = scores(rerank(client, RED_PLANET, PLANETS))
    assert close(pair_scores(client, {first: RED_PLANET, second: PLANETS}), expected)
    assert close(pair_scores(client, {first: [RED_PLANET], second: PLANETS}), expected)
    assert close(pair_scores(client, {first: RED_PLANET, second: PLANETS[2]}), expected[2:3])


def test_many_to_many_goes_pair_by_pair(client: httpx.Client) -> None:
    queries = [RED_PLANET, "the twin of the earth", "a red spot", "rings"]
    expected = [scores(rerank(client, q, [d]))[0] for q, d in zip(queries, PLANETS, strict=True)]
    assert close(pair_scores(client, {"text_1": queries, "text_2": PLANETS}), expected)


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({"text_2": "d"}, ["text_1"]),
        ({"text_1": "q"}, ["text_2"]),
        ({"queries": "q"}, ["documents"]),
        ({"text_1": ["a", "b"], "text_2": ["c", "d", "e"]}, ["text_1", "text_2"]),
        ({"text_1": ["a", "b"], "text_2": "c"}, ["text_1", "text_2"]),
        ({"text_1": "a", "text_2": ["c", 3]}, ["text_2[1]"]),
        ({"text_1": 3, "text_2": "c"}, ["text_1"]),
    ],
    ids=str,
)
def test_a_wrong_score_request_is_400(client: httpx.Client, body: dict[str, Any], names: list[str]) -> None:
    assert_error(client.post("/v1/score", json=body), 400, *names)


TEXTS = ["hello", "The tailnet gives every machine a private name.", "", "caf\u00e9 \u65e5\u672c\u8a9e \U0001f600"]


@pytest.mark.parametrize("field", ["input", "text", "prompt"])
@pytest.mark.parametrize("text", TEXTS)
def test_tokenize(client: httpx.Client, tokenizer: Tokenizer, field: str, text: str) -> None:
    body = client.post("/tokenize", json={field: text}).json()
    assert body["tokens"] == tokenizer.encode(text).ids
    assert body["count"] == len(body["tokens"])


@pytest.mark.parametrize("model", ["embed", "rerank", "qmd-rerank", "default", "something else"])
def test_tokenize_for_either_model(client: httpx.Client, tokenizer: Tokenizer, model: str) -> None:
    body = client.post("/tokenize", json={"input": TEXTS[1], "model": model}).json()
    assert body["tokens"] == tokenizer.encode(TEXTS[1]).ids


def test_tokenize_without_special_tokens(client: httpx.Client, tokenizer: Tokenizer) -> None:
    body = client.post("/tokenize", json={"prompt": TEXTS[1], "add_special_tokens": False}).json()
    assert body["tokens"] == tokenizer.encode(TEXTS[1], add_special_tokens=False).ids


def test_tokenize_does_not_cut(client: httpx.Client) -> None:
    assert client.post("/tokenize", json={"input": "word " * 5_000}).json()["count"] == 5_002


def test_tokenize_repairs(client: httpx.Client, tokenizer: Tokenizer) -> None:
    body = client.post("/tokenize", content=b'{"input": "bad \\ud83d tail"}', headers={"content-type": "application/json"}).json()
    assert body["tokens"] == tokenizer.encode(f"bad {REPLACEMENT} tail").ids
    assert LONE_HIGH not in str(body)


def test_detokenize(client: httpx.Client, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXTS[1], add_special_tokens=False).ids
    answer = client.post("/detokenize", json={"tokens": ids, "model": "embed"})
    assert answer.json()["prompt"] == tokenizer.decode(ids) == "the tailnet gives every machine a private name."


def test_they_compute_nothing(client: httpx.Client) -> None:
    before = computed_tokens(client)
    client.post("/tokenize", json={"input": TEXTS[1]})
    client.post("/detokenize", json={"tokens": [2_000]})
    assert computed_tokens(client) == before


@pytest.mark.parametrize(
    ("path", "body", "names"),
    [
        ("/tokenize", {}, ["input"]),
        ("/tokenize", {"input": 3}, ["input"]),
        ("/tokenize", {"prompt": None}, ["input"]),
        ("/detokenize", {}, ["tokens"]),
        ("/detokenize", {"tokens": "x"}, ["tokens"]),
        ("/detokenize", {"tokens": [1, "x"]}, ["tokens[1]"]),
        ("/detokenize", {"tokens": [1, 10**9]}, ["tokens[1]"]),
        ("/detokenize", {"tokens": [-1]}, ["tokens[0]"]),
        ("/detokenize", {"tokens": [True]}, ["tokens[0]"]),
    ],
    ids=str,
)
def test_wrong_bodies_are_400(client: httpx.Client, path: str, body: dict[str, Any], names: list[str]) -> None:
    assert_error(client.post(path, json=body), 400, *names)
