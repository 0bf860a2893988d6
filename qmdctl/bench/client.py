"""One request, measured by this machine's monotonic clock from the first byte sent to the last one read."""

from __future__ import annotations

import asyncio
import json
import re
import time
from dataclasses import dataclass, field
from typing import Any

import httpx

from qmdctl.bench.workload import Kind, Request
from qmdctl.exchange import ANSWER_BYTES, TooLarge
from qmdctl.probes import json_path

TIMING = re.compile(r"(\w+);dur=([\d.]+)")
PARTS = ("queue", "tokenise", "compute")


@dataclass(frozen=True)
class Answer:
    """`seconds` of one request. Bytes are of the bodies as they went over the wire, an answer's compressed where it was.

    `parts` are seconds that the server told in server-timing; `tokens` and `generated` its usage figures. `failure` is empty, an HTTP
    status, or a word for what happened instead.
    """

    kind: Kind
    seconds: float
    ended: float
    sent: int
    received: int = 0
    texts: int = 0
    tokens: int = 0
    generated: int = 0
    parts: dict[str, float] = field(default_factory=dict)
    failure: str = ""
    said: str = ""
    retry_seconds: float = 0.5
    text: str = ""

    @property
    def ok(self) -> bool:
        return not self.failure


class Client:
    """Requests to one service. `trust` is a TLS context, or False for plain HTTP."""

    def __init__(self, url: str, key: str | None, timeout_seconds: float, trust: Any = False) -> None:
        self.url, self.timeout_seconds = url, timeout_seconds
        headers = {"content-type": "application/json", "accept-encoding": "gzip, deflate", "cache-control": "no-cache"}
        if key:
            headers["authorization"] = f"Bearer {key}"
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        # Limits of httpx are for each read; the whole has one of its own below.
        self._client = httpx.AsyncClient(trust_env=False, verify=trust, headers=headers, limits=limits, timeout=None)

    async def close(self) -> None:
        await self._client.aclose()

    async def post(self, request: Request) -> Answer:
        """The answer, or how it failed. Cancelled, it closes its connection, which the server takes as a client that has left."""
        content = json.dumps(request.body).encode()
        started = time.perf_counter()
        status, body, received, headers, failure, said = 0, b"", 0, httpx.Headers(), "", ""
        try:
            async with (
                asyncio.timeout(self.timeout_seconds),
                self._client.stream("POST", self.url + request.path, content=content) as answer,
            ):
                body = await _read(answer)
                status, received, headers = answer.status_code, answer.num_bytes_downloaded, answer.headers
        except TimeoutError:
            failure, said = "timeout", f"no whole answer in {self.timeout_seconds:g} s"
        except TooLarge as error:
            failure, said = "too large", str(error)
        except httpx.ConnectError as error:
            failure, said = "no connection", str(error)
        except (httpx.HTTPError, httpx.StreamError) as error:
            failure, said = "connection lost", str(error) or type(error).__name__
        ended = time.perf_counter()
        data = None if failure else _json(body)
        if not failure and status != 200:
            failure, said = str(status), str(json_path(data, "error", "message") or body[:200].decode("utf-8", "replace"))
        elif not failure:
            failure, said = _wrong(request, data)
        return Answer(
            request.kind,
            ended - started,
            ended,
            len(content),
            received,
            request.texts,
            _count(data, "prompt_tokens") or _count(data, "total_tokens") if request.texts else _count(data, "prompt_tokens"),
            _count(data, "completion_tokens"),
            {name: float(value) / 1000 for name, value in TIMING.findall(headers.get("server-timing", "")) if name in PARTS},
            failure,
            said,
            _retry_seconds(headers),
            _text(data),
        )


async def _read(answer: httpx.Response) -> bytes:
    content = bytearray()
    async for chunk in answer.aiter_bytes():
        content += chunk
        if len(content) > ANSWER_BYTES:
            raise TooLarge
    return bytes(content)


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _wrong(request: Request, data: Any) -> tuple[str, str]:
    """(failure, sentence) for an answer of status 200 that is not what was asked for."""
    if not isinstance(data, dict):
        return "not JSON", f"{request.path} answered 200 without a JSON object"
    if request.kind == "expansion":
        return ("", "") if isinstance(json_path(data, "choices", 0), dict) else ("incomplete", "an answer without choices")
    rows = data.get("results" if request.kind == "rerank" else "data")
    count = len(rows) if isinstance(rows, list) else 0
    return ("", "") if count == request.texts else ("incomplete", f"{count} answers for {request.texts} texts")


def _count(data: Any, name: str) -> int:
    value = json_path(data, "usage", name)
    return value if isinstance(value, int) else 0


def _text(data: Any) -> str:
    text = json_path(data, "choices", 0, "message", "content") or json_path(data, "choices", 0, "text")
    return text if isinstance(text, str) else ""


def _retry_seconds(headers: httpx.Headers) -> float:
    """How long a failed caller waits: what Retry-After says, up to two seconds."""
    try:
        return min(max(float(headers.get("retry-after", "")), 0.1), 2.0)
    except ValueError:
        return 0.5
