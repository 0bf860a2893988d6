"""POST /rerank with `texts`: the conventions of text-embeddings-inference."""

from __future__ import annotations

import httpx
import pytest

from tests.support.texts import PLANET_COSINES, PLANETS, RED_PLANET, prose
from tests.support.wire import assert_error, close, rerank


def test_a_bare_array_sorted_by_score(client: httpx.Client) -> None:
    answer = client.post("/rerank", json={"query": RED_PLANET, "texts": PLANETS})
    assert answer.status_code == 200
    items = answer.json()
    assert [set(i) for i in items] == [{"index", "score"}] * 4
    ours = rerank(client, RED_PLANET, PLANETS)
    assert [i["index"] for i in items] == [r["index"] for r in ours]
    assert close([i["score"] for i in items], [r["score"] for r in ours])


@pytest.mark.parametrize("field", ["return_text", "return_documents"])
def test_texts_come_back_when_asked_for(client: httpx.Client, field: str) -> None:
    items = client.post("/rerank", json={"query": RED_PLANET, "texts": PLANETS, field: True}).json()
    assert [i["text"] for i in items] == [PLANETS[i["index"]] for i in items]


def test_raw_scores(client: httpx.Client) -> None:
    items = client.post("/rerank", json={"query": RED_PLANET, "texts": PLANETS, "raw_scores": True}).json()
    assert close([i["score"] for i in sorted(items, key=lambda i: i["index"])], PLANET_COSINES, 2e-3)


@pytest.mark.parametrize("truncate", [True, False])
def test_truncate(client: httpx.Client, truncate: bool) -> None:
    answer = client.post("/rerank", json={"query": RED_PLANET, "texts": PLANETS, "truncate": truncate})
    assert len(answer.json()) == 4
    answer = client.post("/rerank", json={"query": RED_PLANET, "texts": ["short", prose(900)], "truncate": truncate})
    if truncate:
        assert len(answer.json()) == 2
    else:
        assert_error(answer, 400, "maximum context length", "texts[1]")
