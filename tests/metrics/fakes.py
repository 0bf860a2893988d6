"""FAKES for what no machine here has or what costs minutes to have: a logged-in tailscaled to command, a vLLM, somebody who is told."""

from __future__ import annotations

import json
import socketserver
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

DOMAIN = "{}.tail0001.ts.net"
USERMETRICS = """# TYPE tailscaled_inbound_bytes_total counter
# HELP tailscaled_inbound_bytes_total Counts the number of bytes received from other peers
tailscaled_inbound_bytes_total{path="direct_ipv4"} 21000
# TYPE tailscaled_outbound_bytes_total counter
# HELP tailscaled_outbound_bytes_total Counts the number of bytes sent to other peers
tailscaled_outbound_bytes_total{path="derp"} 640000
"""


class _Quiet(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, body: bytes, kind: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


class _Serving:
    """A server in a thread. A context manager."""

    server: socketserver.BaseServer

    def __enter__(self) -> Any:
        self._thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()


class FakeTailscaled(_Serving):
    """FAKE: the LocalAPI of a node that is logged in, in `folder`. Change `status`, `serve` or `broken` to have a fault."""

    def __init__(self, name: str, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder, self.domain, self.broken = folder, DOMAIN.format(name), False
        self.status: dict[str, Any] = {
            "BackendState": "Running",
            "Self": {"DNSName": f"{self.domain}.", "Online": True},
            "CertDomains": [self.domain],
            "Health": None,
        }
        proxy = {"Handlers": {"/": {"Proxy": "http://embed:8001"}}}
        self.serve: dict[str, Any] = {"TCP": {"443": {"HTTPS": True}}, "Web": {f"{self.domain}:443": proxy}}
        fake = self

        class Handler(_Quiet):
            def address_string(self) -> str:
                return "socket"

            def do_GET(self) -> None:
                assert self.headers["Host"] == "local-tailscaled.sock"
                if fake.broken:
                    self.answer(b"broken", "text/plain", 500)
                elif self.path == "/localapi/v0/status?peers=false":
                    self.answer(json.dumps(fake.status).encode(), "application/json")
                elif self.path == "/localapi/v0/serve-config":
                    self.answer(json.dumps(fake.serve).encode(), "application/json")
                elif self.path == "/localapi/v0/usermetrics":
                    self.answer(USERMETRICS.encode(), "text/plain; version=0.0.4")
                else:
                    self.answer(b"", "text/plain", 404)

        class Server(socketserver.ThreadingUnixStreamServer):
            daemon_threads = True

            def get_request(self) -> Any:
                request, _ = super().get_request()
                return request, ("socket", 0)

        self.server = Server(str(folder / "tailscaled.sock"), Handler)

    def key_ends(self, at: float | None) -> None:
        """Unix time; None: never, as a tagged node's."""
        self.status["Self"]["KeyExpiry"] = datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z") if at else None


class FakeVllm(_Serving):
    """FAKE: /metrics as a real vLLM printed them (tests/metrics/vllm/: 0.12 on a CPU, after two completions)."""

    def __init__(self, port: int, recorded: Path) -> None:
        body = recorded.read_bytes()

        class Handler(_Quiet):
            def do_GET(self) -> None:
                self.answer(body, "text/plain; version=0.0.4; charset=utf-8")

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)


class Inbox(_Serving):
    """Who is told: takes what is posted. `path` of its address is a secret."""

    path = "/hooks/secret-of-the-owner"

    def __init__(self) -> None:
        self.posts: list[dict[str, Any]] = []
        self.ever: set[str] = set()  # the alerts of which it was told, whatever it has forgotten
        inbox = self

        class Handler(_Quiet):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                assert self.path == inbox.path
                inbox.posts.append(body)
                inbox.ever |= {one["labels"]["alertname"] for one in body.get("alerts", ())}
                self.answer(b"ok", "text/plain")

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}{self.path}"

    def forget(self) -> None:
        self.posts.clear()

    def told(self, name: str, status: str) -> bool:
        """Whether Alertmanager's JSON has told of this alert: firing or resolved."""
        return any(one["labels"]["alertname"] == name and one["status"] == status for post in self.posts for one in post.get("alerts", ()))
