"""FAKE service behind a true sidecar: answers every request with what came of it. As a program it is its own healthcheck."""

import json
import sys


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    size, more = 0, True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    headers = {name.decode(): value.decode() for name, value in scope["headers"]}
    body = json.dumps({"method": scope["method"], "path": scope["path"], "headers": headers, "bytes": size}).encode()
    sent = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": sent})
    await send({"type": "http.response.body", "body": body})


if __name__ == "__main__":
    sys.stdout.write('{"status": "ok", "phase": "ready"}')
