"""Puts the rooms together: the application, its layers and its routes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from embed_service import __version__
from embed_service.control import chosen
from embed_service.control.operations import Operations
from embed_service.control.server import ControlServer
from embed_service.routes import embeddings, generation, health, metrics, models, openapi, page, rerank, score, tokenize
from embed_service.routes.auth import AuthMiddleware
from embed_service.routes.errors import ErrorMiddleware, http_exception
from embed_service.routes.gate import GateMiddleware
from embed_service.routes.observe import ObserveMiddleware
from embed_service.routes.paths import PathMiddleware
from embed_service.routes.peers import TrustedPeers
from embed_service.scheduler.service import Service
from embed_service.settings import Settings
from embed_service.text.pool import TokenizerPool

__all__ = ["create_app"]


def create_app(settings: Settings) -> FastAPI:
    """The application. Its lifespan starts and stops the service; `app.state` has settings, service, operations, pool, peers, forwarder,
    in_flight, draining and drained (see routes/gate.py)."""
    peers = TrustedPeers(settings.trusted_sidecars)
    app = FastAPI(
        title="QMD embed service",
        version=__version__,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_lifespan,
        exception_handlers={HTTPException: http_exception},
        middleware=[  # outermost first
            Middleware(ObserveMiddleware),
            Middleware(ErrorMiddleware),
            Middleware(PathMiddleware),
            Middleware(AuthMiddleware, settings=settings, peers=peers),
            Middleware(GateMiddleware),
        ],
    )
    for room in (embeddings, rerank, score, tokenize, generation, models, health, metrics, openapi, page):
        app.include_router(room.router)
    state = app.state
    state.settings = settings
    state.peers = peers
    state.service = Service(chosen.restore(settings) if settings.control_socket else settings)
    state.operations = Operations(state.service, settings)
    state.pool = TokenizerPool(settings.tokenizer_threads)
    state.tokenize_pool = TokenizerPool(1)  # of POST /tokenize, whose texts have no limit: a search never waits behind one
    state.forwarder = None
    state.created = int(time.time())
    state.in_flight = 0
    state.draining = asyncio.Event()
    state.drained = asyncio.Event()
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    state = app.state
    await state.service.start()
    idle = asyncio.create_task(state.operations.unload_when_unused(state.settings.idle_unload_minutes * 60))
    control = ControlServer(state.settings.control_socket, state.operations) if state.settings.control_socket else None
    if control is not None:
        await control.start()
    try:
        yield
    finally:
        idle.cancel()
        if control is not None:
            await control.close()
        if state.forwarder is not None:
            await state.forwarder.aclose()
        state.pool.close()
        state.tokenize_pool.close()
        await state.service.stop()
