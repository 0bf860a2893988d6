"""Any request: unpaired surrogates are repaired with U+FFFD, control characters pass through, in every text field."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer

from tests.support.texts import LONE_HIGH, LONE_LOW, PLANETS, RED_PLANET, REPLACEMENT
from tests.support.wire import close, embed, scores, vectors

JSON = {"content-type": "application/json"}
BROKEN = [
    (f"bad {LONE_HIGH} tail", f"bad {REPLACEMENT} tail"),
    (f"{LONE_LOW} head", f"{REPLACEMENT} head"),
    (f"end {LONE_HIGH}", f"end {REPLACEMENT}"),
    (LONE_LOW + LONE_HIGH, REPLACEMENT * 2),  # the wrong way round
    (LONE_HIGH * 2 + "x", REPLACEMENT * 2 + "x"),
]


def escaped(body: Any) -> bytes:
    r"""JSON in ASCII, a lone surrogate as \ud83d: what JSON.stringify sends."""
    return json.dumps(body).encode()


def raw(body: Any) -> bytes:
    """JSON with a lone surrogate's own three bytes, which are no valid UTF-8."""
    return json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass")


FORMS = pytest.mark.parametrize("form", [escaped, raw], ids=["escaped", "raw"])


def test_the_request_that_cost_a_client_24_chunks(client: httpx.Client) -> None:
    answer = client.post("/v1/embeddings", content=rb'{"input":["ok","bad \ud83d tail"]}', headers=JSON)
    assert vectors(answer).shape == (2, 384)


@FORMS
def test_embeddings(client: httpx.Client, tokenizer: Tokenizer, form: Any) -> None:
    answer = client.post("/v1/embeddings", content=form({"input": ["ok", *(b for b, _ in BROKEN)]}), headers=JSON)
    rows = vectors(answer)
    assert close(rows[0], embed(client, "ok")[0])
    for row, (_, good) in zip(rows[1:], BROKEN, strict=True):
        assert close(row, embed(client, tokenizer.encode(good).ids)[0])


@FORMS
def test_a_single_string(client: httpx.Client, form: Any) -> None:
    answer = client.post("/v1/embeddings", content=form({"input": BROKEN[0][0]}), headers=JSON)
    assert close(vectors(answer), embed(client, BROKEN[0][1]))


@FORMS
def test_rerank_query_and_documents(client: httpx.Client, form: Any) -> None:
    good = {"query": RED_PLANET + REPLACEMENT, "documents": [PLANETS[0] + REPLACEMENT, PLANETS[1]]}
    bad = {"query": RED_PLANET + LONE_HIGH, "documents": [PLANETS[0] + LONE_LOW, {"text": PLANETS[1]}], "return_documents": True}
    answer = client.post("/v1/rerank", content=form(bad), headers=JSON)
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    assert close(scores(results), scores(client.post("/v1/rerank", json=good).json()["results"]))
    assert {r["index"]: r["document"]["text"] for r in results} == {0: PLANETS[0] + REPLACEMENT, 1: PLANETS[1]}


@FORMS
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/rerank", {"query": LONE_HIGH, "texts": [LONE_LOW, "x"]}),
        ("/v1/score", {"text_1": LONE_HIGH, "text_2": ["x", LONE_LOW]}),
        ("/tokenize", {"text": "x" + LONE_LOW}),
        ("/v1/embeddings", {"input": "x", "model": LONE_HIGH, "user": LONE_HIGH}),
        ("/v1/rerank", {"query": "x", "documents": ["x"], "instruction": LONE_HIGH, "model": LONE_LOW}),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_every_other_text(client: httpx.Client, form: Any, path: str, body: Any) -> None:
    answer = client.post(path, content=form(body), headers=JSON)
    assert answer.status_code == 200, answer.text


@FORMS
def test_a_broken_text_in_a_refused_field_is_a_clean_400(client: httpx.Client, form: Any) -> None:
    answer = client.post("/v1/embeddings", content=form({"input": "x", "encoding_format": LONE_HIGH}), headers=JSON)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "encoding_format"


@pytest.mark.parametrize("pair", ["\U0001f600", "\U00020000"])
def test_whole_pairs_are_left_alone(client: httpx.Client, tokenizer: Tokenizer, pair: str) -> None:
    for form in (escaped, raw):
        answer = client.post("/v1/embeddings", content=form({"input": f"a {pair} b"}), headers=JSON)
        assert close(vectors(answer), embed(client, tokenizer.encode(f"a {pair} b").ids))


@pytest.mark.parametrize("control", ["\0", "\x01", "\x1b", "\x7f", "\x85", "\ufeff", "\uffff", "\u2028"], ids=ascii)
def test_nul_and_other_controls_pass_through(client: httpx.Client, tokenizer: Tokenizer, control: str) -> None:
    text = f"one{control}two three"
    rows = embed(client, [text, control, "x"])
    assert close(rows[0], embed(client, tokenizer.encode(text).ids)[0])
    body = {"query": text, "documents": [control, text], "return_documents": True}
    results = client.post("/v1/rerank", json=body).json()["results"]
    assert {r["document"]["text"] for r in results} == {control, text}


def test_raw_control_characters_inside_a_string_are_read_or_refused_never_a_5xx(client: httpx.Client) -> None:
    answer = client.post("/v1/embeddings", content=b'{"input": "a\x00b\nc"}', headers=JSON)
    assert answer.status_code in (200, 400)
    answer = client.post("/v1/embeddings", content=b'{"input": "a\xff\xfeb"}', headers=JSON)
    assert answer.status_code in (200, 400)
