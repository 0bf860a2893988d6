"""The healthcheck of the vLLM container: prints one line of JSON, exit status 0 only when vLLM's /health is 200.

{"status": "loading", "phase": "downloading", "done_bytes": 1200, "total_bytes": 8000, "stalled_seconds": 0}
"""

from __future__ import annotations

import json
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import phase

URL = os.environ.get("QMD_HEALTH_URL", "http://127.0.0.1:8000/health")
TIMEOUT_SECONDS = 8.0  # a saturated vLLM answers late; the healthcheck's own limit is 10
SERVED = phase.FILE.with_name("qmd-served")  # left by the first success, so that what comes later is a failure and no start


def ask() -> str | None:
    """None when /health is 200; else what it did instead."""
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(URL, timeout=TIMEOUT_SECONDS) as answer:
            return None if answer.status == 200 else f"answers {answer.status}"
    except urllib.error.HTTPError as error:
        return f"answers {error.code}"
    except TimeoutError:
        return f"does not answer within {TIMEOUT_SECONDS:.0f} s"
    except (OSError, ValueError) as error:
        return "does not answer within " + f"{TIMEOUT_SECONDS:.0f} s" if "timed out" in str(error) else "refuses connections"


def report(state: dict[str, Any], failure: str | None, served: bool) -> dict[str, Any]:
    """The line's content, from what start.py wrote and what /health did."""
    if state["phase"] == "error":
        return {"status": "error", "phase": "error", "error": state.get("error", "")}
    if failure is None:
        return {"status": "ok", "phase": "ready"}
    if served:
        return {
            "status": "error",
            "phase": "ready",
            "error": f"vLLM served before and now /health {failure}: restart vllm, and look at its log.",
        }
    result = {"status": "loading", "phase": state["phase"]}
    if state["phase"] == "downloading":
        result |= {name: state.get(name, 0) for name in ("done_bytes", "total_bytes")}
        result["stalled_seconds"] = phase.stalled_seconds(state)
    return result


def main() -> int:
    failure = ask()
    if failure is None:
        Path(SERVED).touch()
    line = report(phase.read(), failure, SERVED.exists())
    sys.stdout.write(json.dumps(line) + "\n")
    return 0 if line["status"] == "ok" else 1


if __name__ == "__main__":
    sys.exit(main())
