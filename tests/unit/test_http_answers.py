"""Numbers, compression, the page and the OpenAPI table."""

from __future__ import annotations

import asyncio
import base64
import gzip
import threading
from importlib.resources import files
from types import SimpleNamespace

import numpy as np
import orjson
import pytest
from starlette.requests import Request

from embed_service.app import create_app
from embed_service.routes.body import read
from embed_service.routes.compute import caching_of
from embed_service.routes.openapi import OPERATIONS, build
from embed_service.routes.page import STATES, render
from embed_service.routes.paths import GET_PATHS, POST_PATHS
from embed_service.routes.serialise import _dumps, accepts_gzip, embedding_values, json_answer, shorten
from embed_service.schemas.embeddings import EmbeddingsRequest
from embed_service.settings import Settings
from embed_service.telemetry import metrics
from embed_service.text.repair import parse_json


def unit_rows(count: int = 5, dimensions: int = 16) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    rows = np.random.default_rng(7).standard_normal((count, dimensions)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("dimensions", [1, 3, 15])
def test_a_cut_vector_is_renormalised(dimensions: int) -> None:
    rows = unit_rows()
    cut = shorten(rows, dimensions, False)
    expected = rows[:, :dimensions] / np.linalg.norm(rows[:, :dimensions], axis=1, keepdims=True)
    np.testing.assert_allclose(cut, expected, atol=1e-6)
    assert cut.dtype == np.float32


def test_nomics_cut_equals_its_model_card() -> None:
    """F.layer_norm over the vector as the model pools it, the cut, F.normalize."""
    pooled = 9.7 * unit_rows(dimensions=768)
    normal = (pooled - pooled.mean(axis=1, keepdims=True)) / np.sqrt(pooled.var(axis=1, keepdims=True) + 1e-5)
    expected = normal[:, :256] / np.linalg.norm(normal[:, :256], axis=1, keepdims=True)
    found = shorten(pooled / np.linalg.norm(pooled, axis=1, keepdims=True), 256, True)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_vector_of_full_size_is_left_alone() -> None:
    rows = unit_rows()
    assert shorten(rows, 16, True) is rows


def test_a_cut_to_zeros_is_still_a_unit_vector() -> None:
    rows = np.zeros((1, 4), np.float32)
    rows[0, 3] = 1
    assert np.linalg.norm(shorten(rows, 2, False)) == 1


def test_floats_are_in_shortest_float32_form_and_base64_is_exact() -> None:
    rows = unit_rows()
    text = orjson.dumps(embedding_values(rows, "float"), option=orjson.OPT_SERIALIZE_NUMPY)
    assert np.array_equal(np.array(orjson.loads(text), np.float32), rows)
    assert orjson.dumps([np.float32(0.1)], option=orjson.OPT_SERIALIZE_NUMPY) == b"[0.1]"
    for value, row in zip(embedding_values(rows, "base64"), rows, strict=True):
        assert np.array_equal(np.frombuffer(base64.b64decode(value), "<f4"), row)


def request(**headers: str) -> Request:
    app = SimpleNamespace(state=SimpleNamespace(settings=Settings()))
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "headers": raw, "app": app})


@pytest.mark.parametrize("encoding", ["float", "base64"])
@pytest.mark.parametrize(("count", "off_the_loop"), [(1, False), (32, True)])
def test_a_large_answer_is_made_and_written_off_the_event_loop(
    monkeypatch: pytest.MonkeyPatch, count: int, encoding: str, off_the_loop: bool
) -> None:
    rows = unit_rows(count, 2_560)
    threads: set[int] = set()

    def body() -> dict[str, object]:
        threads.add(threading.get_ident())
        return {"data": embedding_values(rows, encoding)}

    def dumps(value: object) -> bytes:
        threads.add(threading.get_ident())
        return _dumps(value)

    monkeypatch.setattr("embed_service.routes.serialise._dumps", dumps)
    answer = asyncio.run(json_answer(request(), body, {}, rows.size))
    assert (threading.get_ident() not in threads) == off_the_loop
    assert len(threads) == 1
    assert bytes(answer.body) == orjson.dumps({"data": embedding_values(rows, encoding)})


@pytest.mark.parametrize("count", [1, 32])
def test_a_compressed_answer_is_the_same(count: int) -> None:
    rows = unit_rows(count, 2_560)
    plain = asyncio.run(json_answer(request(), lambda: embedding_values(rows, "float"), {}, rows.size))
    packed = asyncio.run(json_answer(request(accept_encoding="gzip"), lambda: embedding_values(rows, "float"), {}, rows.size))
    assert packed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(bytes(packed.body)) == bytes(plain.body)


@pytest.mark.parametrize(("texts", "off_the_loop"), [(1, False), (200, True)])
def test_a_large_body_is_read_off_the_event_loop(monkeypatch: pytest.MonkeyPatch, texts: int, off_the_loop: bool) -> None:
    threads: list[int] = []

    def parse(body: bytes) -> object:
        threads.append(threading.get_ident())
        return parse_json(body)

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": orjson.dumps({"input": ["word " * 400] * texts})}

    monkeypatch.setattr("embed_service.routes.body.parse_json", parse)
    whole = Request(request().scope, receive)
    assert len(asyncio.run(read(whole, EmbeddingsRequest)).texts) == texts
    assert (threads != [threading.get_ident()]) == off_the_loop


@pytest.mark.parametrize(
    ("headers", "caching"),
    [
        ([], "reuse"),
        (["max-age=0"], "reuse"),
        (["no-cache"], "refresh"),
        (["No-Cache"], "refresh"),
        (["max-age=0, no-cache"], "refresh"),
        (["no-transform", "no-cache"], "refresh"),
        (["no-store"], "off"),
        (["no-cache, no-store"], "off"),
        (["no-store", "no-cache"], "off"),
        (["x-no-cache"], "reuse"),
        ([""], "reuse"),
    ],
)
def test_what_cache_control_asks_for(headers: list[str], caching: str) -> None:
    asked = Request({"type": "http", "headers": [(b"cache-control", value.encode()) for value in headers]})
    assert caching_of(asked) == caching


@pytest.mark.parametrize(
    ("header", "accepted"),
    [
        ("", False),
        ("gzip", True),
        ("gzip, deflate", True),
        ("GZIP;q=0.5", True),
        ("gzip;q=0", False),
        ("gzip; q=0.0, *", False),
        ("*", True),
        ("*;q=0", False),
        ("br, zstd", False),
        ("identity", False),
        ("gzip;q=x", False),
    ],
)
def test_who_accepts_gzip(header: str, accepted: bool) -> None:
    assert accepts_gzip(header) == accepted


def test_the_page_escapes_what_it_shows() -> None:
    page = render({"status": "error", "models": {"embed": "<b>x"}, "error": '"><script>alert(1)</script>'})
    assert "<script>" not in page
    assert "<b>x" not in page
    assert "&lt;b&gt;x" in page


def test_the_page_says_the_same_with_a_script_and_without() -> None:
    script = (files("embed_service") / "page/page.js").read_text("utf-8")
    for state, sentence in STATES.items():
        assert f'{state}: "{sentence}"' in script
        assert sentence in render({"status": state})
    loading = {"status": "loading", "phase": "placing", "progress": {"text": "waiting for a box (no box has 1 GPU free)"}}
    assert "Not ready yet: waiting for a box (no box has 1 GPU free). Requests wait for a while" in render(loading)


def test_every_route_is_documented_tolerated_and_counted() -> None:
    registered = create_app(Settings()).openapi()["paths"]  # FastAPI's own list; the service answers another
    served = {(path, method.upper()) for path, operations in registered.items() for method in operations}
    documented = {(operation.path, operation.method.upper()) for operation in OPERATIONS}
    assert served == documented
    assert {path for path, method in served if method == "GET"} == GET_PATHS
    assert {path for path, method in served if method == "POST"} == POST_PATHS
    assert {path for path, _ in served} == set(metrics.ROUTES) - {"other"}


def test_keys_are_demanded_in_the_document_where_they_are() -> None:
    document = build(keys=True)
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert ("security" in operation) == (path not in ("/health", "/livez", "/", "/docs"))
    assert "security" not in str(build()["paths"])
