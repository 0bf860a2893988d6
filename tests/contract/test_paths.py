"""Every path, with and without /v1, doubled /v1, trailing slash."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.support.wire import assert_error

EMBEDDINGS = {"input": "one note"}
RERANK = {"query": "one", "documents": ["a note"]}
SCORE = {"text_1": "one", "text_2": "a note"}
TEXT = {"input": "one note"}
TOKENS = {"tokens": [101, 2028, 3602, 102]}

POSTS: list[tuple[str, dict[str, Any], str]] = [
    *((p, EMBEDDINGS, "data") for p in ("/v1/embeddings", "/embeddings", "/v1/v1/embeddings")),
    *(
        (p, RERANK, "results")
        for p in (
            "/v1/rerank", "/rerank", "/v2/rerank", "/v1/reranks", "/reranks", "/v1/re-rank", "/re-rank", "/v1/v1/rerank", "/v1/v1/reranks",
        )
    ),
    *((p, SCORE, "data") for p in ("/v1/score", "/score", "/v1/v1/score")),
    *((p, TEXT, "tokens") for p in ("/tokenize", "/v1/tokenize", "/v1/v1/tokenize")),
    *((p, TOKENS, "prompt") for p in ("/detokenize", "/v1/detokenize", "/v1/v1/detokenize")),
]  # fmt: skip
GETS = ["/v1/models", "/models", "/v1/v1/models", "/health", "/livez", "/version", "/metrics", "/stats", "/openapi.json", "/docs"]


@pytest.mark.parametrize("slash", ["", "/"], ids=["bare", "slash"])
@pytest.mark.parametrize(("path", "body", "key"), POSTS, ids=[p for p, _, _ in POSTS])
def test_post(client: httpx.Client, path: str, body: dict[str, Any], key: str, slash: str) -> None:
    answer = client.post(path + slash, json=body)  # redirects are not followed: a client would turn the POST into a GET
    assert answer.status_code == 200, answer.text
    assert answer.json()[key]


@pytest.mark.parametrize("slash", ["", "/"], ids=["bare", "slash"])
@pytest.mark.parametrize("path", GETS)
def test_get(client: httpx.Client, path: str, slash: str) -> None:
    answer = client.get(path + slash)
    assert answer.status_code == 200, answer.text
    assert answer.content


@pytest.mark.parametrize("path", ["/", *GETS])
def test_head_is_a_get_without_its_body(client: httpx.Client, path: str) -> None:
    """Monitors and `curl -I` ask this way."""
    answer = client.head(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == client.get(path).headers["content-type"]
    assert int(answer.headers["content-length"]) > 0
    assert answer.content == b""


@pytest.mark.parametrize("prefix", ["", "/v1", "/v2"])
def test_texts_get_the_bare_array_on_every_rerank_path(client: httpx.Client, prefix: str) -> None:
    answer = client.post(f"{prefix}/rerank", json={"query": "one", "texts": ["a note", "another"]})
    assert answer.status_code == 200, answer.text
    assert [set(item) for item in answer.json()] == [{"index", "score"}] * 2


def test_aliases_answer_alike(client: httpx.Client) -> None:
    one, other = (client.post(p, json=EMBEDDINGS).json() for p in ("/v1/embeddings", "/v1/v1/embeddings/"))
    assert one == other
    one, other = (client.post(p, json=RERANK).json()["results"] for p in ("/v1/rerank", "/reranks/"))
    assert one == other


@pytest.mark.parametrize("path", ["/v1/nothing", "/nothing", "/api/embed", "/v1", "/v1/v1", "/v2/embeddings/x"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_truly_absent_path_is_404(client: httpx.Client, method: str, path: str) -> None:
    assert_error(client.request(method, path, json={} if method == "POST" else None), 404, path)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", "/v1/embeddings", "POST"), ("GET", "/rerank/", "POST"), ("PUT", "/v1/rerank", "POST"), ("DELETE", "/tokenize", "POST"),
     ("POST", "/health", "GET"), ("POST", "/v1/models", "GET"), ("GET", "/v1/completions", "POST"), ("PATCH", "/", "GET")],
)  # fmt: skip
def test_another_method_is_405_and_says_which_is_allowed(client: httpx.Client, method: str, path: str, allowed: str) -> None:
    answer = client.request(method, path)
    assert_error(answer, 405)
    assert allowed in answer.headers["allow"]


@pytest.mark.parametrize(
    "path", ["/v1/completions", "/completions", "/v1/chat/completions", "/chat/completions", "/v1/v1/chat/completions/"]
)
def test_generation_without_a_backend_is_404_and_names_the_setting(client: httpx.Client, path: str) -> None:
    body = {"prompt": "one", "messages": [{"role": "user", "content": "one"}]}
    assert_error(client.post(path, json=body), 404, "GENERATION_URL")


def test_the_page_for_people(client: httpx.Client) -> None:
    answer = client.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert "<html" in answer.text.lower()
