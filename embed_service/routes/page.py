"""GET / and /docs: pages for people, and the files they are made of. Nothing comes from elsewhere, and no script from a string."""

from __future__ import annotations

import hashlib
from functools import cache
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from embed_service import __version__
from embed_service.errors import NotFound
from embed_service.routes.hosts import host_of
from embed_service.routes.paths import ASSET_PATHS

router = APIRouter()

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
PAGE_HEADERS = {**HEADERS, "content-security-policy": POLICY, "x-frame-options": "DENY", "cache-control": "no-store"}
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
MEDIA = {"css": "text/css", "js": "text/javascript", "json": "application/json", "svg": "image/svg+xml"}
WORDS = {"ok": "Ready", "loading": "Loading", "error": "Error", "paused": "Paused", "idle": "Idle"}
STATES = {  # as page/page.js has them
    "ok": "Both models answer.",
    "paused": "Paused: the device is free for something else. Until qmdctl resume, requests wait for a moment and are then refused (503).",
    "idle": "Unloaded for idleness. The next request loads the models and waits for them.",
}


@router.get("/")
async def page(request: Request) -> Response:
    """What is served and how it is, readable without a script or a key; the script adds the numbers."""
    _, health = request.app.state.service.health()
    return Response(render(health), 200, _page_headers(request), "text/html")


@router.get("/docs")
async def docs(request: Request) -> Response:
    """The reference that its script makes of /openapi.json."""
    return Response(_file("docs.html")[0], 200, _page_headers(request), "text/html")


@router.get("/page/{name}", include_in_schema=False)
async def asset(request: Request, name: str) -> Response:
    """A file of the pages. Raises NotFound."""
    path = f"/page/{name}"
    if path not in ASSET_PATHS:
        raise NotFound(f"There is nothing at {path[:200]}.", code="not_found")
    content, tag = _file(name)
    headers = {**HEADERS, "etag": tag, "cache-control": "no-cache"}  # an upgraded service shows its own files at once
    if request.headers.get("if-none-match") == tag:
        return Response(None, 304, headers)
    return Response(content, 200, headers, MEDIA[name.rpartition(".")[2]])


def _page_headers(request: Request) -> dict[str, str]:
    """With Cross-Origin-Opener-Policy where a browser heeds it: over https and on loopback; elsewhere it only complains of it."""
    https = request.headers.get("x-forwarded-proto") == "https"
    if https or host_of(request.headers.get("host", "")) in LOOPBACK:
        return {**PAGE_HEADERS, "cross-origin-opener-policy": "same-origin"}
    return PAGE_HEADERS


def render(health: dict[str, Any]) -> str:
    """The page for a body of /health."""
    state = str(health.get("status", "loading"))
    models = health.get("models") or {}
    facts = {
        "Embeddings": models.get("embed"),
        "Reranking": models.get("rerank"),
        "Device": health.get("device"),
        "Embedding fingerprint": health.get("fingerprint"),
        "Version": __version__,
    }
    rows = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>" for name, value in facts.items() if value)
    return Template(_file("page.html")[0].decode()).substitute(
        state=escape(state),
        word=escape(WORDS.get(state, state)),
        sentence=escape(_sentence(state, health)),
        facts=rows,
        version=escape(__version__),
    )


def _sentence(state: str, health: dict[str, Any]) -> str:
    progress = health.get("progress") or {}
    if state == "error":
        return str(health.get("error") or "The models cannot be served.")
    phase = progress.get("text") or health.get("phase", "starting")
    return STATES.get(state) or f"Not ready yet: {phase}. Requests wait for a while, then are refused (503)."


@cache
def _file(name: str) -> tuple[bytes, str]:
    """The bytes of a file of `embed_service/page`, and its entity tag."""
    content = (files("embed_service") / "page" / name).read_bytes()
    return content, f'"{hashlib.sha256(content).hexdigest()[:20]}"'
