"""The exporter's paths: /metrics of the exporter itself, /sidecar?name=ts-embed of one sidecar, /targets for Prometheus, /livez."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE

from embed_service.exporter.sidecar import SidecarMetrics
from embed_service.exporter.targets import targets

SIDECARS = ("ts-embed", "ts-vllm")
PORT = "9464"  # OpenTelemetry's for Prometheus exporters


class Exporter(ThreadingHTTPServer):
    """`environment`: SIDECARS_DIR (one folder per sidecar), COMPOSE_PROFILES, EMBED_TARGET, VLLM_TARGET."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], environment: Mapping[str, str]) -> None:
        super().__init__(address, Handler)
        self.environment = environment
        folder = Path(environment.get("SIDECARS_DIR") or "/sidecars")
        self.sidecars = {name: SidecarMetrics(name, folder / name) for name in SIDECARS}
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)


class Handler(BaseHTTPRequestHandler):
    """GET alone. Nothing here changes anything or takes more than a name."""

    server: Exporter
    timeout = 10  # of a client that sends nothing
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/livez":
            self._answer(200, "text/plain", b"ok\n")
        elif url.path == "/metrics":
            self._answer(200, CONTENT_TYPE, generate_latest(self.server.registry))
        elif url.path == "/targets":
            there = [name for name, sidecar in self.server.sidecars.items() if sidecar.present]
            body = targets(self.server.environment, self.server.sidecars, there, self.headers.get("Host", ""))
            self._answer(200, "application/json", json.dumps(body).encode())
        elif url.path == "/sidecar":
            name = parse_qs(url.query).get("name", [""])[0]
            sidecar = self.server.sidecars.get(name)
            if sidecar is None:
                self._answer(404, "text/plain", f"There is no sidecar {name!r}; choose from {', '.join(self.server.sidecars)}.\n".encode())
            else:
                self._answer(200, CONTENT_TYPE, sidecar.render())
        else:
            self._answer(404, "text/plain", b"/metrics, /sidecar?name=ts-embed, /targets and /livez are all there is.\n")

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing for a scrape every half minute."""


def main(environment: Mapping[str, str]) -> int:
    """Serve on HOST:PORT until SIGTERM or Ctrl-C. The exit status: 0, or 2 where it cannot listen."""
    host, port = environment.get("HOST") or "127.0.0.1", environment.get("EXPORTER_PORT") or PORT
    if not port.isdecimal() or int(port) > 65535:
        print(f"EXPORTER_PORT: {port!r} is not a port number (0 to 65535).", file=sys.stderr)  # noqa: T201
        return 2
    try:
        server = Exporter((host, int(port)), environment)
    except OSError as error:
        print(f"HOST={host} EXPORTER_PORT={port}: cannot listen ({error.strerror}).", file=sys.stderr)  # noqa: T201
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with server:
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return 130
    return 0
