"""GET /metrics for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from embed_service.telemetry.metrics import CONTENT_TYPE, render

router = APIRouter()


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Every series, present from the start."""
    request.app.state.service.publish_model_info()
    return Response(render(), 200, {"content-type": CONTENT_TYPE})
