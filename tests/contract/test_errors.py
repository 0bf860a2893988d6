"""Any request: one form of error, the right status, never 422 and never 429."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.wire import assert_error, embed

JSON = {"content-type": "application/json"}
BAD_JSON = [b"", b" ", b"{", b'{"input": ', b'{"input": "x"', b"input=x", b"\xff\xfe", b'{"input": "x"}}', b"{'input': 'x'}", b"nul"]


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/rerank", "/v1/score", "/tokenize", "/detokenize"])
@pytest.mark.parametrize("body", BAD_JSON, ids=repr)
def test_bad_json_is_400(client: httpx.Client, path: str, body: bytes) -> None:
    assert_error(client.post(path, content=body, headers=JSON), 400, "JSON")


@pytest.mark.parametrize("body", [b"[]", b'["input"]', b'"x"', b"3", b"null", b"true"], ids=repr)
def test_a_body_that_is_no_object_is_400(client: httpx.Client, body: bytes) -> None:
    assert_error(client.post("/v1/embeddings", content=body, headers=JSON), 400, "object")


@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b'{"input":' * 50_000, b'{"input": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"], ids=["list", "object", "input"]
)
def test_deep_nesting_is_400(client: httpx.Client, body: bytes) -> None:
    assert_error(client.post("/v1/embeddings", content=body, headers=JSON), 400)


def test_huge_numbers_are_400(client: httpx.Client) -> None:
    for number in ("1e400", "9" * 5_000, "-" + "9" * 400, "NaN", "Infinity"):
        body = f'{{"input": "x", "dimensions": {number}}}'
        assert_error(client.post("/v1/embeddings", content=body, headers=JSON), 400)


@pytest.mark.parametrize(
    "type_", ["application/json", "application/json; charset=utf-8", "Application/JSON", "application/problem+json", None], ids=str
)
def test_json_media_types_are_read(client: httpx.Client, type_: str | None) -> None:
    headers = {"content-type": type_} if type_ else {}
    answer = client.post("/v1/embeddings", content=b'{"input": "x"}', headers=headers)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    "type_", ["text/html", "multipart/form-data; boundary=x", "application/xml", "application/octet-stream", "image/png"]
)
@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/rerank", "/tokenize"])
def test_another_media_type_is_415(client: httpx.Client, path: str, type_: str) -> None:
    assert_error(client.post(path, content=b'{"input": "x"}', headers={"content-type": type_}), 415, "application/json")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
def test_a_compressed_body_is_415(client: httpx.Client, encoding: str) -> None:
    headers = {**JSON, "content-encoding": encoding}
    assert_error(client.post("/v1/embeddings", content=gzip.compress(b'{"input": "x"}'), headers=headers), 415, encoding, "uncompressed")
    plain = {**JSON, "content-encoding": "identity"}
    assert client.post("/v1/embeddings", content=b'{"input": "x"}', headers=plain).status_code == 200


def megabytes(count: int) -> Iterator[bytes]:
    yield b'{"input": "'
    for _ in range(count):
        yield b"x" * 2**20
    yield b'"}'


def test_a_body_over_32_mib_is_413(client: httpx.Client) -> None:
    assert_error(client.post("/v1/embeddings", content=b"".join(megabytes(32)), headers=JSON), 413, "MAX_BODY_MIB", "32")


def test_a_body_over_32_mib_without_a_length_is_413(client: httpx.Client) -> None:
    assert_error(client.post("/v1/embeddings", content=megabytes(33), headers=JSON), 413, "MAX_BODY_MIB")


def test_a_body_just_under_32_mib_is_read(client: httpx.Client) -> None:
    body = b"".join([b'{"input": "small", "user": "', b"x" * (32 * 2**20 - 100), b'"}'])
    assert client.post("/v1/embeddings", content=body, headers=JSON).status_code == 200


def test_a_chunked_body_is_read(client: httpx.Client) -> None:
    parts = iter([b'{"input"', b': "one', b' note"}'])
    assert client.post("/v1/embeddings", content=parts, headers=JSON).status_code == 200


def test_detail_says_what_the_message_says(client: httpx.Client) -> None:
    body = client.post("/v1/embeddings", json={}).json()
    assert body["detail"] == body["error"]["message"]
    assert body["error"]["type"] == "invalid_request_error"
    assert body["error"]["param"] == "input"


def test_a_users_text_is_not_echoed_at_length(client: httpx.Client) -> None:
    answer = client.post("/v1/embeddings", json={"input": "x", "encoding_format": "secret " * 10_000})
    assert_error(answer, 400, "encoding_format")
    assert len(answer.content) < 4_000


WRONG_VALUES: list[Any] = [None, True, -1, 0, 1.5, 10**30, "", "x", [], [None], {}, {"x": 1}, "\0", [[[]]]]
FIELDS = {
    "/v1/embeddings": (
        {"input": "x"},
        [
            "input",
            "model",
            "encoding_format",
            "dimensions",
            "input_type",
            "prompt_name",
            "instruction",
            "truncate_prompt_tokens",
            "truncate",
            "user",
        ],
    ),
    "/v1/rerank": (
        {"query": "q", "documents": ["d"]},
        [
            "query",
            "documents",
            "texts",
            "model",
            "top_n",
            "top_k",
            "return_documents",
            "instruction",
            "max_tokens_per_doc",
            "raw_scores",
            "truncate",
        ],
    ),
    "/v1/score": ({"text_1": "q", "text_2": "d"}, ["text_1", "text_2", "queries", "documents", "model", "instruction"]),
    "/tokenize": ({"input": "x"}, ["input", "text", "prompt", "model", "add_special_tokens"]),
    "/detokenize": ({"tokens": [1]}, ["tokens", "model"]),
}


@pytest.mark.parametrize(("path", "field"), [(p, f) for p, (_, fields) in FIELDS.items() for f in fields])
def test_any_value_in_any_field_is_200_or_a_400_that_names_a_field(client: httpx.Client, path: str, field: str) -> None:
    for value in WRONG_VALUES:
        answer = client.post(path, json={**FIELDS[path][0], field: value})
        if answer.status_code != 200:
            error = assert_error(answer, 400)
            assert error["param"], f"{field}={json.dumps(value)}: {error}"


@pytest.mark.parametrize(
    "bearer", ["", "Bearer x", "Bearer sk-test", "Basic eDp5", "Bearer " + "x" * 5_000, "nonsense"], ids=lambda b: b[:12]
)
def test_without_keys_any_bearer_is_accepted(client: httpx.Client, bearer: str) -> None:
    headers = {"authorization": bearer} if bearer else {}
    assert client.post("/v1/embeddings", json={"input": "x"}, headers=headers).status_code == 200
    assert client.get("/v1/models", headers=headers).status_code == 200


def test_after_every_error_the_service_still_answers(client: httpx.Client) -> None:
    assert embed(client, "still here").shape == (1, 384)
    assert client.get("/health").status_code == 200
