"""What the tests of the wire share: vectors out of answers, the one form of an error, readings of /metrics."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import httpx
import numpy as np
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families

Float32 = NDArray[np.float32]
T = TypeVar("T")

FP32 = 1e-5  # how far the same text's vector may differ in float32, whatever its neighbours


def vectors(answer: httpx.Response) -> Float32:
    """float32 [n, dimensions] of an answer of /v1/embeddings, float or base64."""
    assert answer.status_code == 200, answer.text[:2_000]
    rows = []
    for item in answer.json()["data"]:
        value = item["embedding"]
        rows.append(np.frombuffer(base64.b64decode(value), "<f4") if isinstance(value, str) else np.asarray(value, np.float32))
    return np.stack(rows)


def embed(client: httpx.Client, value: Any, **fields: Any) -> Float32:
    """The vectors of `input`; `fields` go into the body."""
    return vectors(client.post("/v1/embeddings", json={"input": value, **fields}))


def rerank(client: httpx.Client, query: str, documents: Sequence[Any], **fields: Any) -> list[dict[str, Any]]:
    """The results of a rerank, as they came."""
    answer = client.post("/v1/rerank", json={"query": query, "documents": documents, **fields})
    assert answer.status_code == 200, answer.text[:2_000]
    return list(answer.json()["results"])


def scores(results: Iterable[dict[str, Any]]) -> list[float]:
    """Relevance scores in the order of the documents."""
    return [r["relevance_score"] for r in sorted(results, key=lambda r: int(r["index"]))]


def close(a: Any, b: Any, tolerance: float = FP32) -> bool:
    return bool(np.allclose(np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=0, atol=tolerance))


def assert_error(answer: httpx.Response, status: int, *names: str) -> dict[str, Any]:
    """The one form of an error. Every one of `names` must be in the message or be the parameter. Returns `error`."""
    assert answer.status_code == status, f"{answer.status_code}: {answer.text[:2_000]}"
    assert answer.headers["content-type"].partition(";")[0] == "application/json"
    body = answer.json()
    assert set(body) == {"error", "detail"}
    assert isinstance(body["detail"], str)
    assert body["detail"]
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["type"], str)
    assert error["type"]
    for key in ("param", "code"):
        assert error[key] is None or isinstance(error[key], str)
    for name in names:
        assert name.lower() in f"{error['message']} {error['param']}".lower(), f"{name!r} is not named: {error}"
    if status == 503:
        assert int(answer.headers["retry-after"]) >= 1
    assert answer.headers["x-request-id"]
    return error


def metric(client: httpx.Client, name: str, **labels: str) -> float:
    """The sum of the samples called `name` whose labels include `labels`. An unknown name is an error."""
    answer = client.get("/metrics")
    assert answer.status_code == 200
    samples = [s for family in text_string_to_metric_families(answer.text) for s in family.samples if s.name == name]
    assert samples, f"/metrics has no {name}"
    return sum(s.value for s in samples if labels.items() <= s.labels.items())


def computed_tokens(client: httpx.Client, role: str | None = None) -> float:
    return metric(client, "embed_computed_tokens_total", **({"role": role} if role else {}))


def in_parallel(*calls: Callable[[], T]) -> list[T]:
    """Run the calls at once; their results in order."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [f.result() for f in [pool.submit(call) for call in calls]]
