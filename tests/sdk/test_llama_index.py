"""llama-index's TEI reranker, which posts {query, texts} to /rerank and reads a bare array."""

from __future__ import annotations

import httpx
import pytest
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.postprocessor.tei_rerank import TextEmbeddingInference

from tests.support.service import ServiceProcess
from tests.support.texts import PLANETS, RED_PLANET, prose
from tests.support.wire import close, rerank


@pytest.mark.parametrize("top_n", [2, 4])
def test_nodes_are_ranked_as_over_raw_http(service: ServiceProcess, raw: httpx.Client, top_n: int) -> None:
    postprocessor = TextEmbeddingInference(base_url=service.url, top_n=top_n, model_name="rerank")
    nodes = [NodeWithScore(node=TextNode(text=text), score=0.0) for text in PLANETS]
    ranked = postprocessor.postprocess_nodes(nodes, query_str=RED_PLANET)
    expected = rerank(raw, RED_PLANET, PLANETS, top_n=top_n)
    assert [n.node.get_content() for n in ranked] == [PLANETS[r["index"]] for r in expected]
    assert close([n.score for n in ranked], [r["score"] for r in expected])


def test_long_nodes_are_cut(service: ServiceProcess) -> None:
    postprocessor = TextEmbeddingInference(base_url=service.url, top_n=3, model_name="rerank")
    nodes = [NodeWithScore(node=TextNode(text=prose(900, n)), score=0.0) for n in range(3)]
    assert len(postprocessor.postprocess_nodes(nodes, query_str=RED_PLANET)) == 3
