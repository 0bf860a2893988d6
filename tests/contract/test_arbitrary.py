"""Arbitrary text in arbitrary requests: answered, and nothing lost for those who share the micro-batch."""

from __future__ import annotations

import json
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tests.support.texts import LONE_HIGH, LONE_LOW, prose
from tests.support.wire import FP32, close, embed, in_parallel, vectors

BOUNDED = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
FEW = settings(BOUNDED, max_examples=20)
HEADERS = {"content-type": "application/json"}
WITNESSES = [prose(9, 100), "short", prose(120, 101)]

# Every code point, lone surrogates and NUL among them; and what clients are known to send.
texts = st.one_of(
    st.text(st.characters(), max_size=200),
    st.text(st.sampled_from([LONE_HIGH, LONE_LOW, "\0", "a", " ", "\n", "\U0001f600", "\ufeff", "\u0301", "\u200d"]), max_size=60),
    st.sampled_from(
        [
            "",
            "\0",
            LONE_HIGH,
            LONE_LOW + LONE_HIGH,
            "[CLS]",
            "[SEP][MASK][PAD]",
            "<|endoftext|>",
            "title: | text: ",
            "\\ud83d",
            '"}',
            "x" * 5_000,
        ]
    ),
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(texts, inner, max_size=5),
    max_leaves=20,
)


def post(client: httpx.Client, path: str, body: Any) -> httpx.Response:
    return client.post(path, content=json.dumps(body).encode(), headers=HEADERS)


def repaired(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


@pytest.fixture(scope="module")
def alone(client: httpx.Client) -> Any:
    return np.concatenate([embed(client, text) for text in WITNESSES])


@given(batch=st.lists(texts, min_size=1, max_size=12))
@BOUNDED
def test_neighbours_get_the_same_answer_as_alone(client: httpx.Client, alone: Any, batch: list[str]) -> None:
    mixed = [WITNESSES[0], *batch, WITNESSES[2]]
    mine, theirs, inside = in_parallel(
        lambda: embed(client, WITNESSES),
        lambda: post(client, "/v1/embeddings", {"input": batch}),
        lambda: vectors(post(client, "/v1/embeddings", {"input": mixed})),
    )
    assert close(mine, alone)
    assert close(inside[[0, -1]], alone[[0, 2]])
    assert close(inside[1:-1], vectors(theirs))
    assert close(np.linalg.norm(inside.astype(np.float64), axis=1), 1)


@given(text=texts)
@BOUNDED
def test_any_text_is_the_vector_of_its_repaired_tokens(client: httpx.Client, tokenizer: Tokenizer, text: str) -> None:
    if text.startswith(("title: ", "task: ")):
        return  # the prompt policy's business
    ids = tokenizer.encode(repaired(text)).ids
    answer = post(client, "/v1/embeddings", {"input": text})
    kept = ids if len(ids) <= 256 else [*ids[:255], ids[-1]]
    assert answer.json()["usage"]["prompt_tokens"] == len(kept)
    assert np.abs(vectors(answer) - embed(client, kept)).max() <= FP32


@given(query=texts, documents=st.lists(texts | st.builds(lambda text: {"text": text}, texts), max_size=8))
@BOUNDED
def test_any_rerank_answers_every_document(client: httpx.Client, query: str, documents: list[Any]) -> None:
    answer = post(client, "/v1/rerank", {"query": query, "documents": documents, "return_documents": True})
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    assert sorted(r["index"] for r in results) == list(range(len(documents)))
    assert [r["relevance_score"] for r in results] == sorted((r["relevance_score"] for r in results), reverse=True)
    assert all(0 <= r["relevance_score"] <= 1 for r in results)
    for result in results:
        sent = documents[result["index"]]
        assert result["document"]["text"] == repaired(sent if isinstance(sent, str) else sent["text"])


@given(body=values)
@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/rerank", "/v1/score", "/tokenize", "/detokenize"])
@FEW
def test_any_json_is_200_or_400(client: httpx.Client, path: str, body: Any) -> None:
    assert post(client, path, body).status_code in (200, 400)


@given(
    body=st.fixed_dictionaries(
        {"input": texts | values, "query": texts, "documents": values, "text_1": texts, "text_2": values, "tokens": values}
    )
)
@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/rerank", "/v1/score", "/tokenize", "/detokenize"])
@FEW
def test_any_value_in_the_right_fields_is_200_or_400(client: httpx.Client, path: str, body: Any) -> None:
    answer = post(client, path, body)
    assert answer.status_code in (200, 400), answer.text
    if answer.status_code == 400:
        assert answer.json()["error"]["param"]


@pytest.mark.parametrize("word", ["x", "\u00e9", "\u65e5", "\U0001f600", LONE_HIGH, "\0"], ids=ascii)
def test_a_megabyte_word_costs_its_neighbours_nothing(client: httpx.Client, alone: Any, word: str) -> None:
    body = {"input": [WITNESSES[0], word * (1_000_000 // len(word.encode("utf-8", "surrogatepass"))), WITNESSES[2]]}
    answer, mine = in_parallel(lambda: vectors(post(client, "/v1/embeddings", body)), lambda: embed(client, WITNESSES))
    assert close(answer[[0, 2]], alone[[0, 2]])
    assert close(mine, alone)


def test_2048_odd_items_cost_their_neighbours_nothing(client: httpx.Client, alone: Any) -> None:
    odd = ["", "\0", LONE_HIGH, LONE_LOW + "x", "\U0001f600", "x" * 300, " ", "\u65e5\u672c"]
    items = [f"{odd[n % 8]}{n}" if n % 3 else odd[n % 8] for n in range(2_048)]
    items[1_000:1_003] = WITNESSES
    rows, mine = in_parallel(
        lambda: vectors(post(client, "/v1/embeddings", {"input": items, "encoding_format": "base64"})), lambda: embed(client, WITNESSES)
    )
    assert rows.shape == (2_048, 384)
    assert close(rows[1_000:1_003], alone)
    assert close(mine, alone)
    for n in (0, 1, 2, 3, 2_046, 2_047):
        assert close(rows[n], embed(client, [repaired(items[n])])[0])
