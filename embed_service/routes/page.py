"""GET /: a page for people."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from embed_service import __version__

router = APIRouter()

STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:44rem;margin:3rem auto;padding:0 1rem;color:#1b1b1b;background:#fff}"
    "th{text-align:left;font-weight:600;padding-right:1.5rem;vertical-align:top}td{overflow-wrap:anywhere}"
    ".ok{color:#0a6b2d}.loading{color:#7a5200}.error{color:#a4161a}a{color:#0b57d0}"
    "@media(prefers-color-scheme:dark){body{color:#e6e6e6;background:#161616}a{color:#8ab4f8}"
    ".ok{color:#6fd08c}.loading{color:#f0c060}.error{color:#ff8a80}}"
)
POLICY = (
    f"default-src 'none'; style-src 'sha256-{base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
LINKS = ("/health", "/v1/models", "/metrics", "/openapi.json")


@router.get("/")
async def page(request: Request) -> Response:
    """What is served and how it is, readable without a client or a key."""
    _, health = request.app.state.service.health()
    return Response(render(health), 200, HEADERS, "text/html")


def render(health: dict[str, Any]) -> str:
    """The page for a body of /health."""
    status = str(health.get("status", "loading"))
    models = health.get("models") or {}
    error = health.get("error")
    facts = {
        "Embeddings": models.get("embed"),
        "Reranking": models.get("rerank"),
        "Device": health.get("device"),
        "Phase": None if status == "ok" else health.get("phase"),
        "Cause": error,
        "Embedding fingerprint": health.get("fingerprint"),
        "Version": __version__,
    }
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>" for name, value in facts.items() if value)
    links = " · ".join(f'<a href="{link}">{link}</a>' for link in LINKS)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>QMD embed service</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{STYLE}</style></head><body>'
        f'<h1>QMD embed service</h1><p>Status: <strong class="{escape(status)}">{escape(status)}</strong></p>'
        f"<table>{rows}</table><p>{links}</p>"
        "<p>POST /v1/embeddings and POST /v1/rerank answer QMD's remote clients; the base URL is this page's address.</p></body></html>"
    )
