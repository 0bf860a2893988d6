"""A fake generation server: it answers what a test tells it to.

Only for what the real one in these tests (`transformers serve`) never does: ask for a key, list models, think, refuse as other servers do,
hang, or wait in the middle of a stream.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any


class Call:
    """One request as it arrived, and the means to answer it."""

    def __init__(self, handler: BaseHTTPRequestHandler) -> None:
        self._handler = handler
        self.path = handler.path
        self.headers = handler.headers
        content = handler.rfile.read(int(handler.headers.get("content-length", 0)))
        self.body: dict[str, Any] = json.loads(content) if content else {}

    def answer(self, status: int, payload: Any, **headers: str) -> None:
        content = payload.encode() if isinstance(payload, str) else json.dumps(payload).encode()
        self._handler.send_response(status)
        for name, value in {"content-type": "application/json", "content-length": str(len(content)), **headers}.items():
            self._handler.send_header(name.replace("_", "-"), value)
        self._handler.end_headers()
        self._handler.wfile.write(content)

    def say(self, content: str) -> None:
        """A chat completion."""
        message = {"role": "assistant", "content": content}
        self.answer(200, {"object": "chat.completion", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})

    def begin_stream(self) -> None:
        self._handler.send_response(200)
        self._handler.send_header("content-type", "text/event-stream")
        self._handler.send_header("connection", "close")
        self._handler.end_headers()
        self._handler.close_connection = True

    def send(self, event: str) -> None:
        self._handler.wfile.write(f"data: {event}\n\n".encode())
        self._handler.wfile.flush()

    def wait_closed(self, seconds: float) -> bool:
        """True when the other side closed its connection within `seconds`."""
        self._handler.connection.settimeout(seconds)
        try:
            return self._handler.connection.recv(1) == b""
        except TimeoutError:
            return False
        except OSError:
            return True


class ScriptedServer:
    """A context manager. `chat` and `models` are what it does; `calls` are the POSTs that came."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.reset()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.models(Call(self))

            def do_POST(self) -> None:
                call = Call(self)
                outer.calls.append(call)
                outer.chat(call)

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # a connection that the other side closed is what some tests are about

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def reset(self) -> None:
        self.calls.clear()
        self.chat: Callable[[Call], None] = lambda call: call.say("hello")
        self.models: Callable[[Call], None] = lambda call: call.answer(200, {"data": [{"id": "served"}, {"id": "also-served"}]})

    def __enter__(self) -> ScriptedServer:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)
