"""Path tolerance."""

from __future__ import annotations

import pytest

from embed_service.routes.paths import canonical


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/", "/"),
        ("", "/"),
        ("//", "/"),
        ("/v1/embeddings", "/v1/embeddings"),
        ("/v1/embeddings/", "/v1/embeddings"),
        ("/embeddings", "/v1/embeddings"),
        ("/v1/v1/embeddings", "/v1/embeddings"),
        ("/v1/v1/v1/embeddings//", "/v1/embeddings"),
        ("//v1//embeddings", "/v1/embeddings"),
        *((path, "/v1/rerank") for path in ("/v1/rerank", "/rerank", "/v2/rerank", "/v1/reranks", "/reranks", "/v1/re-rank", "/re-rank")),
        ("/v1/v2/rerank", "/v1/rerank"),
        ("/v1/v1/reranks/", "/v1/rerank"),
        ("/score", "/v1/score"),
        ("/v1/tokenize", "/tokenize"),
        ("/v1/v1/detokenize", "/detokenize"),
        ("/models", "/v1/models"),
        ("/v1/health", "/health"),
        ("/completions", "/v1/completions"),
        ("/chat/completions/", "/v1/chat/completions"),
    ],
)
def test_every_way_to_write_a_route(path: str, route: str) -> None:
    assert canonical(path) == route


@pytest.mark.parametrize("path", ["/nope", "/v1", "/v1/", "/v2/embeddings", "/v3/rerank", "/v1/embeddings/1", "/V1/embeddings"])
def test_nothing_else_is_a_route(path: str) -> None:
    assert canonical(path) == path
