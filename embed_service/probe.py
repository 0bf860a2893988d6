"""The container's healthcheck: `python -m embed_service.probe` prints one line of JSON; it ends with 0 while all is as it should be.

That is: it answers, or its models are unloaded on purpose (paused, idle).

{"status": "loading", "phase": "downloading", "done_bytes": 1200, "total_bytes": 8000, "stalled_seconds": 0}
{"status": "ok", "phase": "ready", "models": {"embed": "…", "rerank": "…"}}
"""

from __future__ import annotations

import json
import os
import sys
import urllib.error
import urllib.request
from typing import Any

TIMEOUT_SECONDS = 5.0


def ask(port: str) -> dict[str, Any]:
    """The body of /health. Raises OSError or ValueError when there is none."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}/health", timeout=TIMEOUT_SECONDS) as answer:
            body = json.load(answer)
    except urllib.error.HTTPError as error:
        body = json.load(error)
    if not isinstance(body, dict) or "status" not in body:
        raise ValueError("/health has no status")
    return body


def report(body: dict[str, Any]) -> dict[str, Any]:
    """The line's content, in the form that the other service's healthcheck has as well.

    A network that breaks in the middle of a download is a download that stalls: it goes on by itself.
    """
    status = body["status"]
    line = {"status": status, "phase": "ready" if status == "ok" else body.get("phase", "starting")}
    progress = body.get("progress") or {}
    if body.get("error_code") == "offline" and progress.get("total_bytes", 0) > 0:
        line = {"status": "loading", "phase": "downloading"}
    if line["phase"] == "downloading":
        line |= {name: progress.get(name, 0) for name in ("done_bytes", "total_bytes", "stalled_seconds")}
    if line["status"] in ("ok", "paused", "idle") and "models" in body:
        line["models"] = body["models"]  # a switch may have chosen others than the container's settings name
    if line["status"] == "error":
        line["error"] = body.get("error", "")
    return line


def main() -> int:
    try:
        line = report(ask(os.environ.get("PORT") or "8001"))
    except (OSError, ValueError) as error:
        line = {"status": "loading", "phase": "starting", "error": f"/health does not answer: {error}"}
    sys.stdout.write(json.dumps(line) + "\n")
    return 0 if line["status"] in ("ok", "paused", "idle") else 1


if __name__ == "__main__":
    sys.exit(main())
