"""uvicorn around the app, with a drain that keeps listening."""

from __future__ import annotations

import asyncio
import signal
import socket
import time

import structlog
import uvicorn
from starlette.datastructures import State

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

    def __init__(self, config: uvicorn.Config, state: State, drain_seconds: float) -> None:
        super().__init__(config)
        self._state = state
        self._drain_seconds = drain_seconds

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        state = self._state
        log.info("draining", in_flight=state.in_flight)
        state.draining.set()
        await state.service.admission.leave()
        end = time.monotonic() + self._drain_seconds
        while state.in_flight and time.monotonic() < end and not self.force_exit:  # a second signal forces the exit
            await asyncio.sleep(POLL_SECONDS)
        if state.in_flight:
            log.warning("drain cut short", in_flight=state.in_flight)
        state.drained.set()
        await super().shutdown(sockets)
        log.info("stopped")


def serve(settings: Settings, sock: socket.socket) -> int:
    """Serve on an already listening socket until SIGTERM or SIGINT. Returns 0."""
    logs.configure(settings)
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=2,
        server_header=False,
        proxy_headers=False,  # the peer is who connects: an X-Forwarded-For must not change whose Tailscale-* headers are believed
    )
    host, port = sock.getsockname()[:2]
    log.info("listening", url=f"http://{host}:{port}", embed=settings.embed_model, rerank=settings.rerank_model)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # uvicorn raises the signal again at its end; a drained service has exit status 0
    DrainingServer(config, app.state, settings.drain_seconds).run(sockets=[sock])
    return 0
