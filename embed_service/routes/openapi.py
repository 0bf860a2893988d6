"""GET /openapi.json: the whole document, from the schemas and the table below.

Limits that depend on the served models (dimensions, vocabulary, prompt names) are filled in once these are known.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import Response

from embed_service import __version__
from embed_service.models.spec import ModelSpec
from embed_service.routes.auth import OPEN_PATHS
from embed_service.routes.limits import narrow
from embed_service.routes.serialise import json_answer
from embed_service.schemas.embeddings import EmbeddingsRequest, EmbeddingsResponse
from embed_service.schemas.generation import ChatCompletionRequest, CompletionRequest
from embed_service.schemas.rerank import RerankRequest, RerankResponse, TeiRank
from embed_service.schemas.score import ScoreRequest, ScoreResponse
from embed_service.schemas.service import ErrorResponse, Health, Live, Models, Version
from embed_service.schemas.stats import Stats
from embed_service.schemas.tokenize import DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse

__all__ = ["OPERATIONS", "build", "router"]

router = APIRouter()
Schema = type[BaseModel]

REASONS = {
    400: "A value or the JSON is wrong; `param` names the field.",
    401: "An API key is missing or unknown.",
    403: "The Tailscale capability is missing, the request came through Tailscale Funnel, or a page of another site sent it.",
    404: "Nothing is at this path, or what it needs is not configured.",
    405: "The path takes another method; `Allow` names it.",
    413: "The body is larger than MAX_BODY_MIB.",
    415: "The body is not JSON, or is compressed.",
    421: "A browser asked under a host name that is not this server's; ALLOWED_HOSTS adds names.",
    500: "A failure with an id that the log has.",
    503: "Loading, restarting or overloaded: come again after `Retry-After` seconds.",
}
POST_ERRORS = (400, 401, 403, 405, 413, 415, 421, 500, 503)
GET_ERRORS = (401, 403, 405, 421, 500)
OPEN_ERRORS = (403, 405, 421, 500)
COMPUTE_HEADERS = {
    "x-model": "The served model.",
    "x-embedding-fingerprint": "Changes with all that decides which vector a text gets.",
    "x-truncated-inputs": "How many texts were cut.",
    "server-timing": "queue, tokenise and compute, in milliseconds.",
    "x-dropped-fields": "Fields that the served model has no use for; left out when there is none.",
}


@dataclass(frozen=True)
class Operation:
    path: str
    summary: str
    request: Schema | None = None
    answers: tuple[Schema, ...] = ()
    array: Schema | None = None  # a further answer: a bare array of these
    media: str = "application/json"
    headers: tuple[str, ...] = ()
    errors: tuple[int, ...] = POST_ERRORS
    aliases: tuple[str, ...] = ()
    unavailable: Schema = ErrorResponse
    lane: bool = False
    after: bool = False
    example: dict[str, Any] | None = None  # a request

    @property
    def method(self) -> str:
        return "post" if self.request else "get"


OPERATIONS = (
    Operation(
        "/v1/embeddings",
        "Embed texts",
        EmbeddingsRequest,
        (EmbeddingsResponse,),
        headers=tuple(COMPUTE_HEADERS),
        lane=True,
        example={"input": ["first note", "second note"]},
    ),
    Operation(
        "/v1/rerank",
        "Rank documents by their relevance to a query; a body with `texts` gets TEI's bare array",
        RerankRequest,
        (RerankResponse,),
        array=TeiRank,
        headers=tuple(COMPUTE_HEADERS),
        aliases=("/rerank", "/v2/rerank", "/v1/reranks", "/reranks", "/v1/re-rank"),
        lane=True,
        example={"query": "renew a passport", "documents": ["Tomatoes want sun.", "Passports are renewed at the town hall."]},
    ),
    Operation(
        "/v1/score",
        "Score pairs of texts",
        ScoreRequest,
        (ScoreResponse,),
        headers=tuple(COMPUTE_HEADERS),
        aliases=("/score",),
        lane=True,
        example={"text_1": "renew a passport", "text_2": ["Tomatoes want sun.", "Passports are renewed at the town hall."]},
    ),
    Operation(
        "/tokenize", "Token ids of a text", TokenizeRequest, (TokenizeResponse,), headers=("x-model",), example={"input": "first note"}
    ),
    Operation(
        "/detokenize", "Text of token ids", DetokenizeRequest, (DetokenizeResponse,), headers=("x-model",), example={"tokens": [2034, 3602]}
    ),
    Operation(
        "/v1/completions",
        "Complete a prompt (forwarded to GENERATION_URL)",
        CompletionRequest,
        headers=("x-model", "x-dropped-fields"),
        example={"prompt": "Paris is", "max_tokens": 16},
        errors=(*POST_ERRORS, 404),
    ),
    Operation(
        "/v1/chat/completions",
        "Answer a chat (forwarded to GENERATION_URL)",
        ChatCompletionRequest,
        headers=("x-model", "x-dropped-fields"),
        example={"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 16},
        errors=(*POST_ERRORS, 404),
    ),
    Operation("/v1/models", "Models and their aliases", answers=(Models,), errors=GET_ERRORS),
    Operation("/health", "Whether the models answer", answers=(Health,), errors=(*OPEN_ERRORS, 503), unavailable=Health),
    Operation("/livez", "Whether the process listens", answers=(Live,), errors=OPEN_ERRORS),
    Operation("/version", "Version of the service", answers=(Version,), errors=GET_ERRORS),
    Operation("/metrics", "Metrics in Prometheus' text format", media="text/plain", errors=GET_ERRORS),
    Operation("/stats", "The numbers of the last minutes, which the page draws", answers=(Stats,), errors=(400, *GET_ERRORS), after=True),
    Operation("/openapi.json", "This document", errors=GET_ERRORS),
    Operation("/docs", "This document for people", media="text/html", errors=OPEN_ERRORS),
    Operation("/", "A page for people: what is served, its numbers, a search to try", media="text/html", errors=OPEN_ERRORS),
)


@router.get("/openapi.json")
async def openapi(request: Request) -> Response:
    """The OpenAPI document of this very server."""
    state = request.app.state
    specs = {role: served.spec for role in ("embed", "rerank") if (served := state.service.served(role))}
    document = build(specs.get("embed"), specs.get("rerank"), keys=state.settings.api_keys_file is not None)
    return await json_answer(request, document, {})


def build(embed: ModelSpec | None = None, rerank: ModelSpec | None = None, *, keys: bool = False) -> dict[str, Any]:
    """The document; with the models' limits where they are known, and with a key demanded where `keys`."""
    schemas: dict[Schema, str] = {}
    for operation in OPERATIONS:
        if operation.request:
            schemas[operation.request] = "validation"
        for answer in (*operation.answers, operation.array, operation.unavailable):
            if answer:
                schemas[answer] = "serialization"
    _, definitions = models_json_schema(list(schemas.items()), ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    components: dict[str, Any] = {"schemas": definitions["$defs"]}
    narrow(components["schemas"], embed, rerank)
    if keys:
        components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    paths: dict[str, Any] = {}
    for operation in OPERATIONS:
        for path in (operation.path, *operation.aliases):
            described = _operation(operation, path)
            if keys and operation.path not in OPEN_PATHS:
                described["security"] = [{"bearer": []}]
            paths[path] = {operation.method: described}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "QMD embed service",
            "version": __version__,
            "description": "Every /v1 path is also found without /v1, with a trailing slash and behind /v1/v1.",
        },
        "paths": paths,
        "components": components,
    }


def _operation(operation: Operation, path: str) -> dict[str, Any]:
    responses = {"200": _answer(operation)}
    for status in sorted(operation.errors):
        schema = operation.unavailable if status == 503 else ErrorResponse
        responses[str(status)] = {
            "description": REASONS[status],
            "headers": _headers({503: ("retry-after",), 405: ("allow",), 401: ("www-authenticate",)}.get(status, ())),
            "content": _content("application/json", _ref(schema)),
        }
    described: dict[str, Any] = {
        "summary": operation.summary if path == operation.path else f"{operation.summary} (another name of {operation.path})",
        "operationId": f"{operation.method}{path.replace('/', '_').replace('.', '_').replace('-', '_')}",
        "responses": responses,
    }
    if operation.lane:
        lanes = {"type": "string", "enum": ["interactive", "bulk"]}
        said = "The lane, where the server should not choose by size."
        described["parameters"] = [{"name": "x-lane", "in": "header", "required": False, "description": said, "schema": lanes}]
    if operation.after:
        identity = {"type": "integer", "minimum": 0, "maximum": 2**53 - 1}
        said = "The id of a sample: only later ones are told."
        described["parameters"] = [{"name": "after", "in": "query", "required": False, "description": said, "schema": identity}]
    if operation.request:
        content = _content("application/json", _ref(operation.request))
        if operation.example:
            content["application/json"]["example"] = operation.example
        described["requestBody"] = {"required": True, "content": content}
    return described


def _answer(operation: Operation) -> dict[str, Any]:
    choices = [_ref(answer) for answer in operation.answers]
    if operation.array:
        choices.append({"type": "array", "items": _ref(operation.array)})
    content = _content(operation.media, {"anyOf": choices} if len(choices) > 1 else choices[0] if choices else {})
    if operation.request in (CompletionRequest, ChatCompletionRequest):
        content |= _content("text/event-stream", {"type": "string"})
    return {"description": "The answer.", "headers": _headers(operation.headers), "content": content}


def _content(media: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {media: {"schema": copy.deepcopy(schema) if schema or media == "application/json" else {"type": "string"}}}


def _headers(names: tuple[str, ...]) -> dict[str, Any]:
    said = {"x-request-id": "The request's own id where it sent a sane one.", **COMPUTE_HEADERS}
    return {name: {"description": said.get(name, name), "schema": {"type": "string"}} for name in ("x-request-id", *names)}


def _ref(schema: Schema) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{schema.__name__}"}
