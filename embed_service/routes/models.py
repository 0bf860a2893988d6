"""GET /v1/models and /version: what is served, under which names."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from embed_service import __version__
from embed_service.routes.generation import forwarder_of
from embed_service.routes.serialise import json_answer
from embed_service.settings import Settings

router = APIRouter()


@router.get("/v1/models")
async def models(request: Request) -> Response:
    """Ids and aliases, in OpenAI's shape. Some clients refuse to start when their model's name is not listed."""
    settings: Settings = request.app.state.service.settings
    roots: dict[str, str] = {}
    for model, aliases in ((settings.embed_model, settings.embed_model_aliases), (settings.rerank_model, settings.rerank_model_aliases)):
        for name in (model, *aliases):
            roots.setdefault(name, model)
    for name in await forwarder_of(request).names(via=request.headers.get("via", "")):  # single-URL mode serves these too
        roots.setdefault(name, name)
    created = request.app.state.created
    data = [{"id": name, "object": "model", "created": created, "owned_by": "qmd", "root": root} for name, root in roots.items()]
    return await json_answer(request, {"object": "list", "data": data}, {})


@router.get("/version")
async def version(request: Request) -> Response:
    return await json_answer(request, {"version": __version__}, {})
