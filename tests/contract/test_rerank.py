"""POST /v1/rerank: request and answer. The shared service reranks by the cosine of MiniLM."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer

from tests.support.texts import PLANET_COSINES, PLANETS, RED_PLANET, prose
from tests.support.wire import assert_error, close, computed_tokens, rerank, scores

BEST_FIRST = [1, 3, 2, 0]


def test_the_form(client: httpx.Client, minilm: str) -> None:
    body = client.post("/v1/rerank", json={"query": RED_PLANET, "documents": PLANETS}).json()
    assert set(body) == {"id", "object", "model", "results", "usage", "meta"}
    assert isinstance(body["id"], str)
    assert body["id"]
    assert isinstance(body["object"], str)
    assert body["model"] == minilm
    assert [set(r) for r in body["results"]] == [{"index", "relevance_score", "score"}] * 4
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] > 0
    assert body["meta"]["api_version"]["version"]
    assert body["meta"]["billed_units"]["search_units"] >= 0


def test_sorted_by_score_with_scores_between_0_and_1(client: httpx.Client) -> None:
    results = rerank(client, RED_PLANET, PLANETS)
    assert [r["index"] for r in results] == BEST_FIRST
    values = [r["relevance_score"] for r in results]
    assert values == sorted(values, reverse=True)
    assert all(0 <= v <= 1 for v in values)
    assert len(set(values)) == 4
    assert [r["score"] for r in results] == values


def test_raw_scores_are_the_models_own(client: httpx.Client) -> None:
    raw = rerank(client, RED_PLANET, PLANETS, raw_scores=True)
    assert [r["index"] for r in raw] == BEST_FIRST
    assert close(scores(raw), PLANET_COSINES, 2e-3)
    assert_error(client.post("/v1/rerank", json={"query": "q", "documents": ["d"], "raw_scores": "maybe"}), 400, "raw_scores")


def test_opposites_stay_in_range(client: httpx.Client) -> None:
    documents = ["", "zzzz", "!!!", "\u2603", "0", prose(300)]
    assert all(0 <= s <= 1 for s in scores(rerank(client, "a cold winter evening", documents)))


def test_ties_go_by_index(client: httpx.Client) -> None:
    results = rerank(client, RED_PLANET, [PLANETS[0], PLANETS[1], PLANETS[0], PLANETS[1], PLANETS[0]])
    assert [r["index"] for r in results] == [1, 3, 0, 2, 4]
    by_index = scores(results)
    assert by_index[0] == by_index[2] == by_index[4]
    assert by_index[1] == by_index[3]


def test_identical_documents_are_computed_once(client: httpx.Client) -> None:
    once, many = [PLANETS[0], PLANETS[1]], [PLANETS[0], PLANETS[1]] * 30
    start = computed_tokens(client)
    single = scores(rerank(client, RED_PLANET, once))
    middle = computed_tokens(client)
    results = rerank(client, RED_PLANET, many)
    assert computed_tokens(client) - middle == middle - start > 0
    assert len(results) == 60
    assert close(scores(results), single * 30)


def test_strings_and_objects_are_the_same_document(client: httpx.Client) -> None:
    objects = [{"text": t, "id": n, "file": "a.md"} for n, t in enumerate(PLANETS)]
    mixed = [PLANETS[0], objects[1], PLANETS[2], objects[3]]
    expected = scores(rerank(client, RED_PLANET, PLANETS))
    for documents in (objects, mixed):
        assert close(scores(rerank(client, RED_PLANET, documents)), expected)


@pytest.mark.parametrize("field", ["top_n", "top_k"])
@pytest.mark.parametrize(("value", "count"), [(1, 1), (3, 3), (4, 4), (5, 4), (10**6, 4), (0, 4), (None, 4)], ids=str)
def test_top_n(client: httpx.Client, field: str, value: int | None, count: int) -> None:
    assert [r["index"] for r in rerank(client, RED_PLANET, PLANETS, **{field: value})] == BEST_FIRST[:count]


@pytest.mark.parametrize("field", ["top_n", "top_k"])
@pytest.mark.parametrize("value", [-1, 1.5, "2", True, [1]], ids=repr)
def test_a_wrong_top_n_is_400(client: httpx.Client, field: str, value: Any) -> None:
    assert_error(client.post("/v1/rerank", json={"query": "q", "documents": ["d"], field: value}), 400, field)


def test_return_documents(client: httpx.Client) -> None:
    results = rerank(client, RED_PLANET, [PLANETS[0], {"text": PLANETS[1], "file": "a.md"}], return_documents=True)
    assert [r["document"]["text"] for r in results] == [PLANETS[1], PLANETS[0]]
    assert all("document" not in r for r in rerank(client, RED_PLANET, PLANETS, return_documents=False))
    assert_error(client.post("/v1/rerank", json={"query": "q", "documents": ["d"], "return_documents": 7}), 400, "return_documents")


def test_no_documents_no_results(client: httpx.Client) -> None:
    answer = client.post("/v1/rerank", json={"query": RED_PLANET, "documents": []})
    assert answer.status_code == 200
    assert answer.json()["results"] == []
    answer = client.post("/v1/rerank", json={"query": RED_PLANET, "texts": []})
    assert answer.status_code == 200
    assert answer.json() == []


def test_a_thousand_documents_are_all_answered(client: httpx.Client) -> None:
    results = rerank(client, "a private network", [f"note {n}: {prose(6, n)}" for n in range(1_000)])
    assert sorted(r["index"] for r in results) == list(range(1_000))
    answer = client.post("/v1/rerank", json={"query": "q", "documents": ["d"] * 1_001})
    assert_error(answer, 400, "documents", "1000")


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({"documents": ["d"]}, ["query"]),
        ({"query": None, "documents": ["d"]}, ["query"]),
        ({"query": ["q"], "documents": ["d"]}, ["query"]),
        ({"query": 3, "documents": ["d"]}, ["query"]),
        ({"query": "q"}, ["documents"]),
        ({"query": "q", "documents": None}, ["documents"]),
        ({"query": "q", "documents": "d"}, ["documents"]),
        ({"query": "q", "documents": ["d", 3]}, ["documents[1]"]),
        ({"query": "q", "documents": ["d", None]}, ["documents[1]"]),
        ({"query": "q", "documents": [["d"]]}, ["documents[0]"]),
        ({"query": "q", "documents": [{"text": "d"}, {"body": "d"}]}, ["documents[1]", "text"]),
        ({"query": "q", "documents": [{"text": 3}]}, ["documents[0]", "text"]),
        ({"query": "q", "texts": ["d", 3]}, ["texts[1]"]),
        ({"query": "q", "documents": ["d"], "max_tokens_per_doc": 0}, ["max_tokens_per_doc"]),
        ({"query": "q", "documents": ["d"], "max_tokens_per_doc": "9"}, ["max_tokens_per_doc"]),
        ({"query": "q", "documents": ["d"], "instruction": 3}, ["instruction"]),
    ],
    ids=str,
)
def test_a_wrong_field_is_400_and_named(client: httpx.Client, body: dict[str, Any], names: list[str]) -> None:
    assert_error(client.post("/v1/rerank", json=body), 400, *names)


@pytest.mark.parametrize("model", ["ExpedientFalcon/qwen3-reranker:0.6b-q8_0", "bge-reranker", "default", ""])
def test_any_model_name_is_answered(client: httpx.Client, minilm: str, model: str) -> None:
    body = client.post("/v1/rerank", json={"query": RED_PLANET, "documents": PLANETS, "model": model}).json()
    assert [r["index"] for r in body["results"]] == BEST_FIRST
    assert body["model"] == minilm


@pytest.mark.parametrize("alias", ["rerank", "qmd-rerank"])
def test_a_configured_alias_is_echoed(client: httpx.Client, alias: str) -> None:
    assert client.post("/v1/rerank", json={"query": "q", "documents": ["d"], "model": alias}).json()["model"] == alias


def test_a_long_document_is_cut_and_counted(client: httpx.Client) -> None:
    head = prose(300, 5)
    answer = client.post("/v1/rerank", json={"query": "a", "documents": [head + prose(900, 6), "short", head + prose(900, 7)]})
    assert answer.headers["x-truncated-inputs"] == "2"
    by_index = scores(answer.json()["results"])
    assert close(by_index[0], by_index[2])
    assert by_index[0] != by_index[1]


def test_a_long_query_is_cut(client: httpx.Client) -> None:
    head = prose(300, 8)
    one, other = (scores(rerank(client, head + prose(5_000, seed), PLANETS)) for seed in (1, 2))
    assert close(one, other)


@pytest.mark.parametrize(
    "documents", [[prose(3_000, 9)], ["x" * 1_000_000], ["\u65e5\u672c\u8a9e" * 1_200]], ids=["words", "one word", "cjk"]
)
def test_a_long_document_with_a_long_query(client: httpx.Client, documents: list[str]) -> None:
    assert len(rerank(client, prose(3_000, 10), documents)) == 1


def test_max_tokens_per_doc_cuts_the_document(client: httpx.Client, tokenizer: Tokenizer) -> None:
    head = "Mars is the red planet"
    tail = " and " + prose(60, 11)
    assert len(tokenizer.encode(head, add_special_tokens=False).ids) == 5
    full, cut, plain = (
        scores(rerank(client, RED_PLANET, documents, **fields))[0]
        for documents, fields in (([head + tail], {}), ([head + tail], {"max_tokens_per_doc": 5}), ([head], {}))
    )
    assert not close(full, plain, 1e-3)
    assert close(cut, plain)


def test_usage_counts_tokens(client: httpx.Client, tokenizer: Tokenizer) -> None:
    def total(documents: list[str]) -> int:
        return int(client.post("/v1/rerank", json={"query": "one two", "documents": documents}).json()["usage"]["total_tokens"])

    def real(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    a, b, c = prose(40, 1), prose(50, 2), prose(150, 2)
    assert total([a, b]) >= real(a) + real(b)
    assert total([a, c]) - total([a, b]) == real(c) - real(b)


def test_empty_texts_are_answered(client: httpx.Client) -> None:
    assert len(rerank(client, "", ["", "a", {"text": ""}])) == 3


def test_unknown_fields_are_ignored(client: httpx.Client) -> None:
    extra = {"rank_fields": ["text"], "overlap": 3, "priority": 0, "truncation": True, "instruction": "Judge the note", "user": None}
    assert close(scores(rerank(client, RED_PLANET, PLANETS, **extra)), scores(rerank(client, RED_PLANET, PLANETS)))
