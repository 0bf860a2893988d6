"""The OpenAPI document against the contract's table, and the running service against its document."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.openapi_table import OPERATIONS, Operation
from tests.support.service import ServiceProcess

ROWS = pytest.mark.parametrize(("key", "expected"), OPERATIONS.items(), ids=[f"{method} {path}" for path, method in OPERATIONS])


@pytest.fixture(scope="module")
def document(client: httpx.Client) -> dict[str, Any]:
    answer = client.get("/openapi.json")
    assert answer.status_code == 200
    assert answer.json()["openapi"].startswith("3.")
    return dict(answer.json())


def resolve(document: dict[str, Any], node: Any) -> Any:
    while isinstance(node, dict) and "$ref" in node:
        target: Any = document
        for step in node["$ref"].removeprefix("#/").split("/"):
            target = target[step]
        node = target
    return node


def fields(document: dict[str, Any], schema: Any) -> dict[str, Any]:
    """All properties of a schema, those of its alternatives included."""
    schema = resolve(document, schema)
    found: dict[str, Any] = dict(schema.get("properties", {}))
    for alternative in (*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())):
        found = {**fields(document, alternative), **found}
    return found


def item_fields(document: dict[str, Any], schema: Any) -> dict[str, Any]:
    schema = resolve(document, schema)
    if "items" in schema:
        return fields(document, schema["items"])
    return {k: v for alternative in schema.get("anyOf", ()) for k, v in item_fields(document, alternative).items()}


def body_schema(message: dict[str, Any]) -> Any:
    return message["content"]["application/json"]["schema"]


@ROWS
def test_every_path_and_status_is_documented(document: dict[str, Any], key: tuple[str, str], expected: Operation) -> None:
    path, method = key
    assert path in document["paths"]
    operation = document["paths"][path][method]
    assert expected.statuses <= set(operation["responses"])
    assert not {"422", "429"} & set(operation["responses"])
    assert operation.get("summary") or operation.get("description")


@ROWS
def test_every_field_is_documented(document: dict[str, Any], key: tuple[str, str], expected: Operation) -> None:
    path, method = key
    operation = document["paths"][path][method]
    if expected.request:
        assert expected.request <= set(fields(document, body_schema(resolve(document, operation["requestBody"]))))
    if expected.answer:
        answer = fields(document, body_schema(resolve(document, operation["responses"]["200"])))
        assert expected.answer <= set(answer)
        name, inside = expected.items
        if name:
            assert inside <= set(item_fields(document, answer[name]))
    if expected.headers:
        assert expected.headers <= {h.lower() for h in resolve(document, operation["responses"]["200"])["headers"]}


@ROWS
def test_every_error_has_the_one_form(document: dict[str, Any], key: tuple[str, str], expected: Operation) -> None:
    path, method = key
    if path == "/health":
        return  # its 503 has the fields of its 200
    for status in expected.statuses - {"200"}:
        response = resolve(document, document["paths"][path][method]["responses"][status])
        error = fields(document, body_schema(response))
        assert set(error) == {"error", "detail"}, status
        assert set(fields(document, error["error"])) == {"message", "type", "param", "code"}
        if status == "503":
            assert "retry-after" in {h.lower() for h in response["headers"]}


def test_a_rerank_with_texts_is_documented_as_a_bare_array(document: dict[str, Any]) -> None:
    schema = resolve(document, body_schema(resolve(document, document["paths"]["/v1/rerank"]["post"]["responses"]["200"])))
    assert {"index", "score"} <= set(item_fields(document, schema))


def test_the_lane_header_is_documented(document: dict[str, Any]) -> None:
    for path in ("/v1/embeddings", "/v1/rerank"):
        names = {resolve(document, p)["name"].lower() for p in document["paths"][path]["post"].get("parameters", ())}
        assert "x-lane" in names


def test_schemathesis_finds_no_undocumented_answer(service: ServiceProcess, tmp_path: Path) -> None:
    """Status, media type, headers and form of every answer; no 5xx but 503. schemathesis.toml says what is left out and why."""
    program = shutil.which("schemathesis", path=str(Path(sys.executable).parent))
    assert program, "schemathesis is a part of the test requirements"
    config = Path(__file__).with_name("schemathesis.toml")
    done = subprocess.run(
        [program, "--config-file", str(config), "run", f"{service.url}/openapi.json"],
        cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    report = done.stdout[-12_000:] + done.stderr[-2_000:]
    assert done.returncode == 0, report
    assert "generated" in done.stdout, report
