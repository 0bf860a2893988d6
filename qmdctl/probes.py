"""Real requests to the running stack. /health alone says 200 on an engine that has stopped."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from qmdctl.terminal import human_seconds

QUERY = "How do I water a cactus?"
DOCUMENTS = ["A cactus needs water once a month, when its soil is dry.", "The train to Lisbon leaves at nine from the second platform."]
PROMPT = "The capital of France is"
UNIT_TOLERANCE = 1e-2  # of a vector's length; rounding to bfloat16 gives about 4e-3


class Broken(Exception):
    """A link that does not work: why, and what mends it."""

    def __init__(self, why: str, fix: str = "") -> None:
        super().__init__(why)
        self.why, self.fix = why, fix


@dataclass
class Link:
    """One link of the chain from the engine to a true answer. `seconds` is None where it was not tried."""

    service: str
    name: str
    ok: bool | None = None
    seconds: float | None = None
    detail: str = ""
    fix: str = ""

    def payload(self) -> dict[str, Any]:
        state = "skipped" if self.ok is None else "ok" if self.ok else "broken"
        seconds = None if self.seconds is None else round(self.seconds, 3)
        return {
            "service": self.service,
            "link": self.name,
            "state": state,
            "seconds": seconds,
            "detail": self.detail,
            "fix": self.fix or None,
        }


def try_link(service: str, name: str, action: Callable[[], str]) -> Link:
    """Run `action`, which returns what it saw or raises Broken, and time it."""
    start = time.perf_counter()
    try:
        detail = action()
    except Broken as error:
        return Link(service, name, False, time.perf_counter() - start, error.why, error.fix)
    return Link(service, name, True, time.perf_counter() - start, detail)


@dataclass
class Probe:
    """Requests to one service at `url` with `key`, each given up after `timeout_seconds`."""

    service: str
    url: str
    timeout_seconds: float = 20.0
    key: str | None = None
    client: httpx.Client = field(default_factory=lambda: httpx.Client(trust_env=False))

    def health(self) -> str:
        answer = self._send("GET", "/health")
        body = _json_or_none(answer)
        if answer.status_code == 200:
            return "200"
        error = body.get("error") if isinstance(body, dict) else None
        text = error if isinstance(error, str) else f"phase {body.get('phase')}" if isinstance(body, dict) and "phase" in body else ""
        raise Broken(f"/health says {answer.status_code}{': ' + text if text else ''}", f"qmdctl status; qmdctl logs {self.service}")

    def embedding(self) -> str:
        """A vector: finite and of unit length."""
        body = self._post("/v1/embeddings", {"input": [QUERY]})
        vector = _path(body, "data", 0, "embedding")
        if not isinstance(vector, list) or not vector or not all(isinstance(x, int | float) and math.isfinite(x) for x in vector):
            raise Broken("the embedding has no numbers, or some that are not finite", f"qmdctl restart {self.service}")
        length = math.sqrt(sum(x * x for x in vector))
        if abs(length - 1) > UNIT_TOLERANCE:
            raise Broken(f"the embedding's length is {length:.4f}, not 1", f"qmdctl restart {self.service}")
        return f"{len(vector)} dimensions, length {length:.3f}"

    def rerank(self) -> str:
        """Two scores, in [0, 1]."""
        body = self._post("/v1/rerank", {"query": QUERY, "documents": DOCUMENTS})
        results = body.get("results")
        scores = {}
        for one in results if isinstance(results, list) else []:
            score = one.get("relevance_score")
            if not isinstance(score, int | float) or not 0 <= score <= 1:
                raise Broken(f"the rerank's score {score!r} is not in [0, 1]", f"qmdctl restart {self.service}")
            scores[one.get("index")] = score
        if sorted(scores) != [0, 1]:
            raise Broken(f"the rerank answered documents {sorted(scores, key=str)} of 2", f"qmdctl restart {self.service}")
        return f"scores {scores[0]:.3f} (fitting) and {scores[1]:.3f} (not fitting)"

    def completion(self) -> str:
        body = self._post("/v1/completions", {"prompt": PROMPT, "max_tokens": 8, "temperature": 0})
        return self._text(_path(body, "choices", 0, "text"), "completion")

    def chat(self) -> str:
        request = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "max_tokens": 16, "temperature": 0}
        body = self._post("/v1/chat/completions", request)
        text = self._text(_path(body, "choices", 0, "message", "content"), "chat")
        if "<think>" in text:
            raise Broken(
                "the reply contains <think>: the template without thinking is not active",
                "empty VLLM_CHAT_TEMPLATE in .env, then: qmdctl up",
            )
        return text

    def _text(self, text: object, what: str) -> str:
        if not isinstance(text, str) or not text.strip():
            raise Broken(f"the {what} came back empty", f"qmdctl restart {self.service}; its log: qmdctl logs {self.service}")
        return f"“{' '.join(text.split())[:60]}”"

    def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        answer = self._send("POST", path, body)
        data = _json_or_none(answer)
        if answer.status_code == 401:
            raise Broken("refused: it wants an API key (API_KEYS_FILE is set)", "qmdctl health --key-file FILE, with a key as plain text")
        if answer.status_code != 200:
            message = _path(data, "error", "message") or answer.text[:200]
            raise Broken(f"{path} answered {answer.status_code}: {message}", f"qmdctl logs {self.service}")
        if not isinstance(data, dict):
            raise Broken(f"{path} did not answer JSON: {answer.text[:100]!r}", f"qmdctl logs {self.service}")
        return data

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
        try:
            return self.client.request(method, self.url + path, json=body, headers=headers, timeout=self.timeout_seconds)
        except httpx.TimeoutException:
            raise Broken(self._silent(path), f"qmdctl restart {self.service}") from None
        except httpx.HTTPError as error:
            raise Broken(f"{path}: {error or type(error).__name__}", f"qmdctl status; qmdctl logs {self.service}") from None

    def _silent(self, path: str) -> str:
        """What to say of a request that was not answered in time."""
        limit = human_seconds(self.timeout_seconds)
        if path in ("/v1/completions", "/v1/chat/completions"):
            waiting = self._waiting()
            return f"{self.service} answers /health but did not generate a token in {limit}{waiting}"
        return f"{path} was not answered in {limit}"

    def _waiting(self) -> str:
        """vLLM's own count of waiting requests, where it tells it."""
        try:
            text = self.client.get(f"{self.url}/metrics", timeout=2).text
        except httpx.HTTPError:
            return ""
        counts = [line.rsplit(" ", 1)[1] for line in text.splitlines() if line.startswith("vllm:num_requests_waiting{")]
        return f" (requests waiting: {float(counts[0]):.0f})" if counts else ""


def _json_or_none(answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except (json.JSONDecodeError, UnicodeDecodeError):
        return None


def _path(data: Any, *keys: str | int) -> Any:
    """data[k1][k2]…, None where it ends early."""
    for key in keys:
        try:
            data = data[key]
        except (KeyError, IndexError, TypeError):
            return None
    return data
