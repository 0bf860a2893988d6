"""What the requests accept, and how they name what is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from embed_service.errors import BadRequest
from embed_service.schemas.embeddings import EmbeddingsRequest
from embed_service.schemas.fields import Request
from embed_service.schemas.rerank import RerankRequest
from embed_service.schemas.score import ScoreRequest
from embed_service.schemas.tokenize import DetokenizeRequest, TokenizeRequest

E, R, S, T, D = EmbeddingsRequest, RerankRequest, ScoreRequest, TokenizeRequest, DetokenizeRequest


@pytest.mark.parametrize(
    ("value", "texts", "token_lists"),
    [
        ("a", ["a"], []),
        ("", [""], []),
        (["a", ""], ["a", ""], []),
        ([1, 2], [], [[1, 2]]),
        ([1.0, 2], [], [[1, 2]]),
        ([[1], [2, 3]], [], [[1], [2, 3]]),
        (["x"] * 2048, ["x"] * 2048, []),
        ([7] * 5000, [], [[7] * 5000]),
    ],
    ids=["text", "empty-text", "texts", "ids", "whole-floats", "id-lists", "most-texts", "many-ids"],
)
def test_every_form_of_input(value: Any, texts: list[str], token_lists: list[list[int]]) -> None:
    request = E.read({"input": value})
    assert request.texts == texts
    assert ([] if texts else request.token_lists) == token_lists


@pytest.mark.parametrize(
    ("schema", "body", "param", "part"),
    [
        (E, {}, "input", "required"),
        (E, {"input": None}, "input", "not null"),
        (E, {"input": 3}, "input", "not a number"),
        (E, {"input": {}}, "input", "not an object"),
        (E, {"input": []}, "input", "empty"),
        (E, {"input": ["a", 3]}, "input[1]", "string"),
        (E, {"input": ["a", None]}, "input[1]", "null"),
        (E, {"input": [True]}, "input[0]", "boolean"),
        (E, {"input": [1, True]}, "input[1]", "boolean"),
        (E, {"input": [1, "a"]}, "input[1]", "token id"),
        (E, {"input": [1, 2.5]}, "input[1]", "token id"),
        (E, {"input": [[1], []]}, "input[1]", "empty"),
        (E, {"input": [[1], [2, "a"]]}, "input[1][1]", "token id"),
        (E, {"input": [[1], "a"]}, "input[1]", "array of token ids"),
        (E, {"input": ["a", [1]]}, "input[1]", "string"),
        (E, {"input": ["x"] * 2049}, "input", "at most 2048"),
        (E, {"input": [[1]] * 2049}, "input", "at most 2048"),
        (E, {"input": "a", "encoding_format": "int8"}, "encoding_format", "base64"),
        (E, {"input": "a", "encoding_format": ["float"]}, "encoding_format", "base64"),
        (E, {"input": "a", "dimensions": 0}, "dimensions", "greater than or equal to 1"),
        (E, {"input": "a", "dimensions": "3"}, "dimensions", "integer"),
        (E, {"input": "a", "dimensions": 2.5}, "dimensions", "integer"),
        (E, {"input": "a", "dimensions": True}, "dimensions", "integer"),
        (E, {"input": "a", "input_type": "poem"}, "input_type", "document"),
        (E, {"input": "a", "input_type": 1}, "input_type", "document"),
        (E, {"input": "a", "truncate": "MIDDLE"}, "truncate", "START"),
        (E, {"input": "a", "truncate": 1}, "truncate", "START"),
        (E, {"input": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "-1"),
        (E, {"input": "a", "truncate_prompt_tokens": -2}, "truncate_prompt_tokens", "-1"),
        (E, {"input": "a", "prompt_name": 5}, "prompt_name", "string"),
        (R, {"documents": []}, "query", "required"),
        (R, {"query": 1, "documents": []}, "query", "string"),
        (R, {"query": "q"}, "documents", "required"),
        (R, {"query": "q", "documents": None}, "documents", "required"),
        (R, {"query": "q", "documents": "d"}, "documents", "array"),
        (R, {"query": "q", "documents": ["d", 4]}, "documents[1]", "string"),
        (R, {"query": "q", "documents": [{"text": "d"}, {"title": "t"}]}, "documents[1].text", "required"),
        (R, {"query": "q", "documents": [{"text": 4}]}, "documents[0].text", "string"),
        (R, {"query": "q", "documents": ["d"] * 1001}, "documents", "at most 1000"),
        (R, {"query": "q", "texts": [{"text": "d"}]}, "texts[0]", "string"),
        (R, {"query": "q", "documents": [], "top_n": -1}, "top_n", "greater than or equal to 0"),
        (R, {"query": "q", "documents": [], "top_k": "3"}, "top_k", "integer"),
        (R, {"query": "q", "documents": [], "max_tokens_per_doc": 0}, "max_tokens_per_doc", "1"),
        (R, {"query": "q", "documents": [], "raw_scores": "yes"}, "raw_scores", "boolean"),
        (S, {"text_2": "b"}, "text_1", "required"),
        (S, {"queries": "a"}, "text_2", "required"),
        (S, {"text_1": ["a", "b"], "text_2": ["c", "d", "e"]}, "text_2", "1:N"),
        (S, {"text_1": [], "text_2": ["c"]}, "text_1", "empty"),
        (S, {"text_1": ["a", 2], "text_2": ["c"]}, "text_1[1]", "string"),
        (T, {}, "input", "required"),
        (T, {"input": ["a"]}, "input", "string"),
        (T, {"prompt": "a", "add_special_tokens": 1}, "add_special_tokens", "boolean"),
        (D, {"tokens": "1"}, "tokens", "array"),
        (D, {"tokens": [1, None]}, "tokens[1]", "null"),
        (D, {"tokens": [True]}, "tokens[0]", "boolean"),
    ],
)
def test_what_is_wrong_is_named(schema: type[Request], body: dict[str, Any], param: str, part: str) -> None:
    with pytest.raises(BadRequest) as error:
        request = schema.read(body)
        if isinstance(request, ScoreRequest):
            request.pairs()
    assert error.value.param == param
    assert part in error.value.message
    assert error.value.message.startswith(param)


@pytest.mark.parametrize("schema", [E, R, S, T, D])
@pytest.mark.parametrize("body", [None, [], "x", 1, True])
def test_a_body_is_an_object(schema: type[Request], body: Any) -> None:
    with pytest.raises(BadRequest, match="JSON object"):
        schema.read(body)


def test_null_is_absent_and_unknown_fields_are_ignored() -> None:
    fields = [name for name in E.model_fields if name != "input"]
    assert E.read({"input": "a", **dict.fromkeys(fields), "user": 5, "unknown": [[]]}) == E.read({"input": "a"})
    fields = [name for name in R.model_fields if name not in ("query", "documents")]
    plain = {"query": "q", "documents": ["d"]}
    assert R.read({**plain, **dict.fromkeys(fields), "rank_fields": []}) == R.read(plain)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(True, "END"), (False, "NONE"), ("END", "END"), ("start", "START"), ("None", "NONE"), ("left", "START"), (None, None)],
)
def test_every_spelling_of_truncate(value: Any, expected: str | None) -> None:
    assert E.read({"input": "a", "truncate": value}).truncate == expected


@pytest.mark.parametrize(
    ("name", "value", "expected"), [("dimensions", 3.0, 3), ("truncate_prompt_tokens", -1, -1), ("truncate_prompt_tokens", 5.0, 5)]
)
def test_whole_numbers_are_integers(name: str, value: Any, expected: int) -> None:
    assert getattr(E.read({"input": "a", name: value}), name) == expected


@pytest.mark.parametrize("model", [None, "anything", 5, ["x"], {"a": 1}])
def test_any_model_is_accepted(model: Any) -> None:
    assert E.read({"input": "a", "model": model}).model == model


@pytest.mark.parametrize(
    ("body", "most"),
    [
        ({}, 3),
        ({"top_n": None}, 3),
        ({"top_n": 0}, 3),
        ({"top_n": 2}, 2),
        ({"top_k": 1}, 1),
        ({"top_n": 2, "top_k": 1}, 2),
        ({"top_n": 10**30}, 10**30),
    ],
)
def test_how_many_results(body: dict[str, Any], most: int) -> None:
    assert R.read({"query": "q", "documents": ["a", {"text": "b"}, "c"], **body}).most == most


def test_texts_are_teis_documents() -> None:
    assert R.read({"query": "q", "texts": ["a"], "documents": ["b"]}).candidates == ["a"]
    assert R.read({"query": "q", "texts": None, "documents": ["b"]}).candidates == ["b"]
    assert R.read({"query": "q", "texts": []}).candidates == []


def test_pairs_to_score() -> None:
    assert S.read({"text_1": "a", "text_2": "b"}).pairs() == [("a", "b")]
    assert S.read({"text_1": "a", "text_2": ["b", "c"]}).pairs() == [("a", "b"), ("a", "c")]
    assert S.read({"queries": ["a", "b"], "documents": ["c", "d"]}).pairs() == [("a", "c"), ("b", "d")]
    assert S.read({"data_1": "a", "data_2": ["b"]}).pairs() == [("a", "b")]
    assert S.read({"text_1": ["a"], "documents": ["b", "c"]}).pairs() == [("a", "b"), ("a", "c")]
