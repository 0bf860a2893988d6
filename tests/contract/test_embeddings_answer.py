"""POST /v1/embeddings: the answer's form, its numbers, its size."""

from __future__ import annotations

import gzip
import json
import re

import httpx
import numpy as np
import pytest

from tests.support.texts import PLANET_COSINES, PLANETS, RED_PLANET, prose
from tests.support.wire import close, embed, in_parallel, vectors

BATCH = [prose(5 + 7 * n, n) for n in range(32)]


def test_the_form(client: httpx.Client, minilm: str) -> None:
    body = client.post("/v1/embeddings", json={"input": ["one", "two"], "model": "x"}).json()
    assert set(body) == {"object", "model", "data", "usage"}
    assert body["object"] == "list"
    assert body["model"] == minilm
    assert [set(d) for d in body["data"]] == [{"object", "index", "embedding"}] * 2
    assert [d["object"] for d in body["data"]] == ["embedding"] * 2
    assert [d["index"] for d in body["data"]] == [0, 1]
    assert body["usage"] == {"prompt_tokens": 6, "total_tokens": 6}


def test_the_models_own_values(client: httpx.Client) -> None:
    rows = embed(client, [RED_PLANET, *PLANETS])
    assert close(rows[1:] @ rows[0], PLANET_COSINES, 2e-3)


def test_finite_unit_length_constant_dimension(client: httpx.Client) -> None:
    rows = embed(client, BATCH)
    assert rows.shape == (32, 384)
    assert np.isfinite(rows).all()
    assert close(np.linalg.norm(rows.astype(np.float64), axis=1), 1)


def test_in_input_order(client: httpx.Client) -> None:
    shuffled = [BATCH[n] for n in np.random.default_rng(0).permutation(32)]
    whole = dict(zip(BATCH, embed(client, BATCH), strict=True))
    for text, row in zip(shuffled, embed(client, shuffled), strict=True):
        assert close(row, whole[text])


def test_the_same_text_twice_is_the_same_vector(client: httpx.Client) -> None:
    rows = embed(client, [BATCH[3], BATCH[9], BATCH[3]])
    assert close(rows[0], rows[2])


def test_neighbours_change_nothing(client: httpx.Client) -> None:
    alone = np.concatenate([embed(client, text) for text in BATCH[::4]])
    together = embed(client, BATCH)[::4]
    noise = [lambda seed=seed: embed(client, [prose(200, seed * 50 + n) for n in range(20)]) for seed in range(1, 4)]
    crowded = in_parallel(*noise, lambda: embed(client, BATCH))[-1][::4]
    assert close(together, alone)
    assert close(crowded, alone)


def test_floats_have_their_shortest_float32_form(client: httpx.Client) -> None:
    raw = client.post("/v1/embeddings", json={"input": BATCH}).content
    texts: list[str] = []
    json.loads(raw, parse_float=lambda text: texts.append(text) or text)
    assert len(texts) >= 32 * 384 * 0.99  # a value may print as an integer
    for text in texts:
        shortest = np.format_float_scientific(np.float32(text), unique=True, trim="-")
        assert significant(text) == significant(shortest), text


def significant(number: str) -> str:
    return re.sub(r"[eE].*|[-+.]", "", number).strip("0")


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_gzip_when_asked_for(client: httpx.Client, encoding: str) -> None:
    body = {"input": BATCH, "encoding_format": encoding}
    plain = client.post("/v1/embeddings", json=body, headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers
    with client.stream("POST", "/v1/embeddings", json=body, headers={"accept-encoding": "gzip, deflate"}) as answer:
        assert answer.headers["content-encoding"] == "gzip"
        assert "accept-encoding" in answer.headers.get("vary", "").lower()
        packed = b"".join(answer.iter_raw())
    assert len(packed) < len(plain.content)
    assert close(vectors(httpx.Response(200, content=gzip.decompress(packed))), vectors(plain))


def test_no_gzip_for_a_client_that_does_not_ask(client: httpx.Client) -> None:
    request = client.build_request("POST", "/v1/embeddings", json={"input": BATCH})
    del request.headers["accept-encoding"]
    answer = client.send(request)
    assert "content-encoding" not in answer.headers
    assert vectors(answer).shape == (32, 384)


def test_gzip_refused_by_quality_is_not_sent(client: httpx.Client) -> None:
    answer = client.post("/v1/embeddings", json={"input": BATCH}, headers={"accept-encoding": "gzip;q=0, identity"})
    assert "content-encoding" not in answer.headers


def test_response_headers(client: httpx.Client, minilm: str) -> None:
    health = client.get("/health").json()
    first, second = (client.post("/v1/embeddings", json={"input": "one note"}) for _ in range(2))
    assert first.headers["x-request-id"] != second.headers["x-request-id"]
    assert first.headers["x-model"] == minilm
    assert first.headers["x-embedding-fingerprint"] == health["fingerprint"]
    assert first.headers["x-truncated-inputs"] == "0"
    timing = dict(part.strip().split(";dur=") for part in first.headers["server-timing"].split(","))
    assert set(timing) >= {"queue", "tokenise", "compute"}
    assert all(float(v) >= 0 for v in timing.values())
    assert float(timing["compute"]) > 0


def test_headers_of_the_other_routes(client: httpx.Client, minilm: str) -> None:
    answer = client.post("/v1/rerank", json={"query": "q", "documents": ["d", prose(400)]})
    assert answer.headers["x-model"] == minilm
    assert answer.headers["x-truncated-inputs"] == "1"
    assert "compute;dur=" in answer.headers["server-timing"]
    for path in ("/health", "/livez", "/v1/models", "/version", "/metrics"):
        assert client.get(path).headers["x-request-id"]
