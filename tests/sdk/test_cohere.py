"""Cohere's ClientV2, which posts to /v2/rerank."""

from __future__ import annotations

from collections.abc import Iterator

import cohere
import httpx
import pytest

from tests.support.service import ServiceProcess
from tests.support.texts import PLANETS, RED_PLANET, prose
from tests.support.wire import close, rerank


@pytest.fixture(scope="module")
def sdk(service: ServiceProcess) -> Iterator[cohere.ClientV2]:
    with httpx.Client(timeout=60) as transport:
        yield cohere.ClientV2(api_key="x", base_url=service.url, httpx_client=transport)


def test_scores_are_those_of_raw_http(sdk: cohere.ClientV2, raw: httpx.Client) -> None:
    answer = sdk.rerank(model="rerank-v3.5", query=RED_PLANET, documents=PLANETS)
    expected = rerank(raw, RED_PLANET, PLANETS)
    assert [r.index for r in answer.results] == [r["index"] for r in expected]
    assert close([r.relevance_score for r in answer.results], [r["relevance_score"] for r in expected])
    assert answer.id
    assert answer.meta is not None
    assert answer.meta.api_version is not None
    assert answer.meta.billed_units is not None


def test_top_n_and_max_tokens_per_doc(sdk: cohere.ClientV2, raw: httpx.Client) -> None:
    documents = [f"{text} {prose(50, n)}" for n, text in enumerate(PLANETS)]
    answer = sdk.rerank(model="x", query=RED_PLANET, documents=documents, top_n=2, max_tokens_per_doc=8)
    expected = rerank(raw, RED_PLANET, documents, top_n=2, max_tokens_per_doc=8)
    assert [r.index for r in answer.results] == [r["index"] for r in expected]
    assert len(answer.results) == 2


def test_an_error_is_the_sdks_own_class(sdk: cohere.ClientV2) -> None:
    with pytest.raises(cohere.BadRequestError) as caught:
        sdk.rerank(model="x", query=RED_PLANET, documents=PLANETS, top_n=-1)
    assert "top_n" in str(caught.value.body)
