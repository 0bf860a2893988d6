"""Path tolerance: clients put their base URL together in several ways, and all of them mean the same route.

Before routing, repeated and trailing slashes go, /v1/v1 collapses, a route is found with and without /v1, and the other names of rerank
become /v1/rerank. A HEAD for a GET route becomes that GET; the server leaves the body out.
"""

from __future__ import annotations

import re

from starlette.types import ASGIApp, Receive, Scope, Send

from embed_service.routes.record import record_of

__all__ = ["ASSET_PATHS", "GET_PATHS", "POST_PATHS", "PathMiddleware", "canonical"]

GET_PATHS = frozenset({"/", "/health", "/livez", "/version", "/metrics", "/stats", "/openapi.json", "/docs", "/v1/models"})
POST_PATHS = frozenset({"/v1/embeddings", "/v1/rerank", "/v1/score", "/tokenize", "/detokenize", "/v1/completions", "/v1/chat/completions"})
ASSETS = ("page.css", "page.js", "plots.js", "search.js", "clients.js", "clients.json", "shared.js", "docs.js", "icon.svg")
ASSET_PATHS = frozenset(f"/page/{name}" for name in ASSETS)  # of the pages for people; counted as "other"
PATHS = GET_PATHS | POST_PATHS | ASSET_PATHS
GETS = GET_PATHS | ASSET_PATHS
RERANK = frozenset({"/rerank", "/reranks", "/re-rank"})


def canonical(path: str) -> str:
    """The route that `path` means, or `path` itself where it means none."""
    clean = re.sub(r"/{2,}", "/", path)
    clean = clean.rstrip("/") or "/"
    while clean.startswith(("/v1/v1/", "/v1/v2/")) or clean == "/v1/v1":
        clean = clean[3:]
    if clean in PATHS:
        return clean
    bare = re.sub(r"^/v[12](?=/)", "", clean)
    if bare in RERANK:
        return "/v1/rerank"
    if clean.startswith("/v1/") and bare in PATHS:
        return bare
    if f"/v1{clean}" in PATHS:
        return f"/v1{clean}"
    return path


class PathMiddleware:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = canonical(scope["path"])
            if path in PATHS:
                record_of(scope).route = path
                method = "GET" if scope["method"] == "HEAD" and path in GETS else scope["method"]
                scope = {**scope, "path": path, "raw_path": path.encode(), "method": method}
        await self.app(scope, receive, send)
