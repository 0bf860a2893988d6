"""uvicorn around the app, with a drain that keeps listening."""

from __future__ import annotations

import asyncio
import socket

import structlog
import uvicorn

from embed_service.app import create_app
from embed_service.settings import Settings
from embed_service.telemetry import logs

KEEP_ALIVE_SECONDS = 120  # above the 90 s that Tailscale's proxy keeps idle connections: below it POSTs fail now and then
POLL_SECONDS = 0.05

log = structlog.get_logger(__name__)


class DrainingServer(uvicorn.Server):
    """On SIGTERM: finish what is in flight while still listening, then answer the rest with 503 and close.

    uvicorn closes its sockets first. Clients would be refused for the whole drain, and a QMD client that is refused for 4 s stores zero
    scores for good; held in the queue instead it meets the next process.
    """

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        state = self.config.loaded_app_state  # type: ignore[attr-defined]
        seconds = self.config.drain_seconds  # type: ignore[attr-defined]
        log.info("draining", in_flight=state.in_flight)
        state.draining.set()
        try:
            async with asyncio.timeout(seconds):
                while state.in_flight:
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            log.warning("drain ran out of time", in_flight=state.in_flight)
        state.drained.set()
        await super().shutdown(sockets)
        log.info("stopped")


def serve(settings: Settings, sock: socket.socket) -> int:
    """Serve on an already listening socket until SIGTERM or SIGINT. Returns 0."""
    logs.configure(settings)
    app = create_app(settings)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, timeout_keep_alive=KEEP_ALIVE_SECONDS, timeout_graceful_shutdown=2, server_header=False
    )
    config.loaded_app_state = app.state  # type: ignore[attr-defined]
    config.drain_seconds = settings.drain_seconds  # type: ignore[attr-defined]
    host, port = sock.getsockname()[:2]
    log.info("listening", url=f"http://{host}:{port}", embed=settings.embed_model, rerank=settings.rerank_model)
    DrainingServer(config).run(sockets=[sock])
    return 0
