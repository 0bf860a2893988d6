"""What the schemas of the OpenAPI document say more precisely once the served models are known, and across fields."""

from __future__ import annotations

from typing import Any

from embed_service.models.spec import ModelSpec
from embed_service.schemas.score import FIRST, SECOND

__all__ = ["narrow"]


def narrow(schemas: dict[str, Any], embed: ModelSpec | None, rerank: ModelSpec | None) -> None:
    """Change the schemas of the requests in place."""
    schemas["RerankRequest"]["anyOf"] = [_given("documents", "array"), _given("texts", "array")]
    schemas["TokenizeRequest"]["anyOf"] = [_given(name, "string") for name in ("input", "text", "prompt")]
    schemas["ScoreRequest"]["allOf"] = [{"anyOf": [_given(name, "string", "array") for name in names]} for names in (FIRST, SECOND)]
    if embed:
        fields = schemas["EmbeddingsRequest"]["properties"]
        _integer(fields["dimensions"])["maximum"] = embed.dimensions
        _vocabulary(fields["input"], embed.vocabulary)
        names = {"type": "string", "enum": list(embed.prompts)}
        fields["prompt_name"]["anyOf"] = [names, {"type": "null"}] if embed.prompts else [{"type": "null"}]
    if embed and rerank:
        _vocabulary(schemas["DetokenizeRequest"]["properties"]["tokens"], min(embed.vocabulary, rerank.vocabulary))


def _given(name: str, *types: str) -> dict[str, Any]:
    return {"required": [name], "properties": {name: {"type": list(types) if len(types) > 1 else types[0]}}}


def _integer(field: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(branch for branch in field["anyOf"] if branch.get("type") == "integer")
    return found


def _vocabulary(schema: dict[str, Any], size: int) -> None:
    if schema.get("type") == "integer":
        schema["maximum"] = size - 1
    for branch in (*schema.get("anyOf", ()), *([schema["items"]] if "items" in schema else ())):
        _vocabulary(branch, size)
