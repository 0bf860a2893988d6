"""Runs on the laptop: one HTTP request, described by JSON on standard input, answered by JSON on standard output.

`url`; `method` (GET, or POST where there is a `json`); `json`; `headers`; `padding`: bytes of spaces in front of the JSON;
`stream`: give the events of an event stream, and with `during` the body of that other address when the first event had come;
`repeat`: seconds for which to go on, one connection for each request, and count the answers by status; `timeout` in seconds.

The answer has `status`, `headers`, `body`, `events`, `during`, `counts` and `error` (the transport's, the certificate's), if any.
"""

import json
import sys
import time
from collections import Counter

import httpx


def content(wanted: dict) -> dict:
    method = wanted.get("method") or ("POST" if "json" in wanted else "GET")
    headers = dict(wanted.get("headers") or {})
    body = None
    if "json" in wanted:
        headers["content-type"] = "application/json"
        body = b" " * wanted.get("padding", 0) + json.dumps(wanted["json"]).encode()
    return {"method": method, "url": wanted["url"], "headers": headers, "content": body}


def stream(client: httpx.Client, request: dict, during: str | None) -> dict:
    """The second request is made with the first event in hand and the stream still open."""
    events, seen = [], None
    with client.stream(**request) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: "):
                events.append(line[6:])
                if during and seen is None:
                    seen = httpx.get(during).text
        return {"status": answer.status_code, "headers": dict(answer.headers), "events": events, "during": seen}


def repeat(wanted: dict, request: dict) -> dict:
    end, counts = time.monotonic() + wanted["repeat"], Counter()
    while time.monotonic() < end:
        try:
            counts[str(httpx.request(**request, timeout=30).status_code)] += 1
        except httpx.TransportError as error:
            counts[type(error).__name__] += 1
    return {"counts": counts}


def ask(wanted: dict) -> dict:
    request = content(wanted)
    try:
        if wanted.get("repeat"):
            return repeat(wanted, request)
        with httpx.Client(timeout=wanted.get("timeout", 60)) as client:
            if wanted.get("stream"):
                return stream(client, request, wanted.get("during"))
            answer = client.request(**request)
            return {"status": answer.status_code, "headers": dict(answer.headers), "body": answer.text}
    except httpx.TransportError as error:
        return {"error": f"{type(error).__name__}: {error}"}


json.dump(ask(json.load(sys.stdin)), sys.stdout)
