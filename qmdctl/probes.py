"""Real requests to the running stack. /health alone says 200 on an engine that has stopped."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from qmdctl.exchange import exchange
from qmdctl.terminal import human_seconds

QUERY = "How do I water a cactus?"
DOCUMENTS = ["A cactus needs water once a month, when its soil is dry.", "The train to Lisbon leaves at nine from the second platform."]
PROMPT = "The capital of France is"
PLAIN: Mapping[str, Mapping[str, Any]] = {  # what is sent where nobody's own form of a request is asked for
    "embedding": {"input": [QUERY]},
    "rerank": {"query": QUERY, "documents": DOCUMENTS},
    "completion": {"prompt": PROMPT, "max_tokens": 8, "temperature": 0},
    "chat": {"messages": [{"role": "user", "content": "What is the capital of France?"}], "max_tokens": 16, "temperature": 0},
}
LARGEST = 1e100  # of a vector's numbers; what is beyond, not a number included, cannot be squared
WAKING_SECONDS = 120.0  # for which a request waits, at most, while idle models load
UNIT_TOLERANCE = 1e-2  # of a vector's length; rounding to bfloat16 gives about 4e-3


class Broken(Exception):
    """A link that does not work: why, and what mends it."""

    def __init__(self, why: str, fix: str = "") -> None:
        super().__init__(why)
        self.why, self.fix = why, fix


class Locked(Exception):
    """A refusal that is as it should be: nothing is broken, and nothing is proven either."""


@dataclass
class Link:
    """One link of the chain from the engine to a true answer.

    `ok` is None where it was not tried (`seconds` is None) or where a lock refused the request, as it should.
    """

    service: str
    name: str
    ok: bool | None = None
    seconds: float | None = None
    detail: str = ""
    fix: str = ""

    @property
    def locked(self) -> bool:
        return self.ok is None and self.seconds is not None

    def payload(self) -> dict[str, Any]:
        state = {True: "ok", False: "broken", None: "locked" if self.locked else "skipped"}[self.ok]
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
    except Locked as refusal:
        return Link(service, name, None, time.perf_counter() - start, str(refusal))
    return Link(service, name, True, time.perf_counter() - start, detail)


@dataclass
class Probe:
    """Requests to one service at `url` with `key`, each given up after `timeout_seconds`.

    `bodies` are the four requests. `where` stands before each fix: it says on which machine to type it. `seen` is what answers told
    beside what was asked: `model`, and of an embedding `fingerprint`.
    """

    service: str
    url: str
    timeout_seconds: float = 20.0
    key: str | None = None
    client: httpx.Client = field(default_factory=lambda: httpx.Client(trust_env=False))
    bodies: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: PLAIN)
    where: str = ""
    seen: dict[str, str] = field(default_factory=dict)

    def health(self) -> str:
        answer = self._send("GET", "/health")
        told = json_path(json_or_none(answer), "status")
        if answer.status_code == 200:
            return self.answered(json_or_none(answer))
        if told == "paused":
            raise Broken("it is paused: its models were unloaded to free the device", self.fix(f"qmdctl resume {self.service}"))
        raise Broken(f"/health says {answer.status_code}{state_of(answer)}", self.fix(f"qmdctl status; qmdctl logs {self.service}"))

    def answered(self, body: Any) -> str:
        """What a /health that answered says. After idleness the next request is given the time that loading the models takes."""
        if json_path(body, "status") != "idle":
            return "200"
        self.timeout_seconds = max(self.timeout_seconds, WAKING_SECONDS)
        return "200: idle, the next request loads the models"

    def lock(self) -> str:
        """That a request without a key and without a capability is refused; this probe has no key."""
        answer = self._send("GET", "/version")
        if answer.status_code not in (401, 403):
            why = f"/version answered {answer.status_code} without a key or a capability, although .env demands one"
            raise Broken(why, f"qmdctl up, which starts {self.service} with what .env says")
        return f"{answer.status_code} for who has no {'key' if answer.status_code == 401 else 'capability'}"

    def embedding(self) -> str:
        """Vectors, one for each text: finite, of unit length and one size."""
        count = len(self.bodies["embedding"]["input"])
        body = self._post("/v1/embeddings", self.bodies["embedding"])
        vectors = [json_path(body, "data", i, "embedding") for i in range(count)]
        for vector in vectors:
            if not isinstance(vector, list) or not vector or not all(isinstance(x, int | float) and abs(x) < LARGEST for x in vector):
                raise Broken("the embedding has no numbers, or some that are not finite", self.fix(f"qmdctl restart {self.service}"))
            length = math.sqrt(sum(x * x for x in vector))
            if abs(length - 1) > UNIT_TOLERANCE:
                raise Broken(f"the embedding's length is {length:.4f}, not 1", self.fix(f"qmdctl restart {self.service}"))
        sizes = sorted({len(vector) for vector in vectors})
        if len(sizes) > 1:
            raise Broken(f"the embeddings have {' and '.join(map(str, sizes))} dimensions", self.fix(f"qmdctl restart {self.service}"))
        return f"{sizes[0]} dimensions, length {length:.3f}"

    def rerank(self, *, fitting_first: bool = False) -> str:
        """Two scores, in [0, 1]; with `fitting_first` that of the fitting document is the higher one."""
        body = self._post("/v1/rerank", self.bodies["rerank"])
        results = body.get("results")
        scores: dict[int | str, float] = {}
        for one in results if isinstance(results, list) else []:
            score = json_path(one, "relevance_score")
            if not isinstance(score, int | float) or not 0 <= score <= 1:
                raise Broken(f"the rerank's score {score!r} is not in [0, 1]", self.fix(f"qmdctl restart {self.service}"))
            index = json_path(one, "index")
            scores[index if isinstance(index, int) else repr(index)] = score
        if sorted(scores, key=str) != [0, 1]:
            raise Broken(f"the rerank answered documents {sorted(scores, key=str)} of 2", self.fix(f"qmdctl restart {self.service}"))
        told = f"scores {scores[0]:.3f} (fitting) and {scores[1]:.3f} (not fitting)"
        if fitting_first and scores[0] <= scores[1]:
            raise Broken(f"the rerank puts the document that does not fit first: {told}", self.fix(f"qmdctl restart {self.service}"))
        return told

    def models(self, wanted: str) -> str:
        """That vLLM serves `wanted`, by the first of its list, whose name may be another one (VLLM_EXTRA_ARGS), but not its folder.

        A request that names no model is answered by whichever is there, and one that names an alias too.
        """
        answer = self._send("GET", "/v1/models")
        data = json_or_none(answer)
        listed = json_path(data, "data")
        if answer.status_code != 200 or not isinstance(listed, list):
            raise self.refused("/v1/models", answer, data)
        name, folder = (str(json_path(listed, 0, key) or "") for key in ("id", "root"))
        if wanted not in (name, folder) and f"models--{wanted.replace('/', '--')}" not in folder.split("/"):
            raise Broken(f"it serves {name or 'nothing'}, not {wanted}", self.fix(f"qmdctl logs {self.service}"))
        return wanted

    def completion(self) -> str:
        body = self._post("/v1/completions", self.bodies["completion"])
        return self._text(json_path(body, "choices", 0, "text"), "completion")

    def chat(self) -> str:
        body = self._post("/v1/chat/completions", self.bodies["chat"])
        text = self._text(json_path(body, "choices", 0, "message", "content"), "chat")
        if "<think>" in text:
            raise Broken(
                "the reply contains <think>: the template without thinking is not active",
                self.fix("empty VLLM_CHAT_TEMPLATE in .env, then: qmdctl up"),
            )
        return text

    def fix(self, step: str) -> str:
        """A step as this probe's user has to take it."""
        return self.where + step

    def refused(self, path: str, answer: httpx.Response, data: Any) -> Broken | Locked:
        """What an answer to a request that is no 200 with a JSON object means."""
        if answer.status_code == 401:
            why = "the key that was sent is not one of its keys" if self.key else "it wants an API key (API_KEYS_FILE is set)"
            mend = f"qmdctl keys list; qmdctl restart {self.service}, where a new file took the old one's place: it has the old one"
            return Broken(f"refused: {why}", mend if self.key else "qmdctl up; or qmdctl health --key-file FILE, with a key as plain text")
        if answer.status_code == 403 and json_path(data, "error", "code") == "missing_capability":
            return Locked("refused, as REQUIRE_CAPABILITY demands: this machine's own requests have no capability")
        logs = self.fix(f"qmdctl logs {self.service}")
        if answer.status_code != 200:
            message = json_path(data, "error", "message") or answer.text[:200]
            return Broken(f"{path} answered {answer.status_code}: {message}", logs)
        return Broken(f"{path} did not answer JSON: {answer.text[:100]!r}", logs)

    def _text(self, text: object, what: str) -> str:
        if not isinstance(text, str) or not text.strip():
            steps = f"qmdctl restart {self.service}; its log: qmdctl logs {self.service}"
            raise Broken(f"the {what} came back empty", self.fix(steps))
        return f"“{' '.join(text.split())[:60]}”"

    def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        answer = self._send("POST", path, body)
        data = json_or_none(answer)
        if answer.status_code != 200 or not isinstance(data, dict):
            raise self.refused(path, answer, data)
        told = {"model": data.get("model"), "fingerprint": answer.headers.get("x-embedding-fingerprint")}
        self.seen = {name: str(value) for name, value in told.items() if value}
        return data

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        headers = {"cache-control": "no-cache"}  # an answer that was kept proves nothing
        if self.key:
            headers["authorization"] = f"Bearer {self.key}"
        try:
            return exchange(self.client, method, self.url + path, self.timeout_seconds, json=body, headers=headers)
        except httpx.TimeoutException:
            raise Broken(self._silent(path), self.fix(f"qmdctl restart {self.service}")) from None
        except httpx.HTTPError as error:
            steps = f"qmdctl status; qmdctl logs {self.service}"
            raise Broken(f"{path}: {error or type(error).__name__}", self.fix(steps)) from None

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
            text = exchange(self.client, "GET", f"{self.url}/metrics", 2).text
        except httpx.HTTPError:
            return ""
        counts = [line.rsplit(" ", 1)[1] for line in text.splitlines() if line.startswith("vllm:num_requests_waiting{")]
        return f" (requests waiting: {float(counts[0]):.0f})" if counts else ""


def state_of(answer: httpx.Response) -> str:
    """What the body of a /health that is not green says: `: its error` or `: phase loading`, else nothing."""
    body = json_or_none(answer)
    if not isinstance(body, dict):
        return ""
    error = body.get("error")
    return f": {error}" if isinstance(error, str) else f": phase {body['phase']}" if "phase" in body else ""


def json_or_none(answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except (ValueError, RecursionError):
        return None


def json_path(data: Any, *keys: str | int) -> Any:
    """data[k1][k2]…, None where it ends early."""
    for key in keys:
        try:
            data = data[key]
        except (KeyError, IndexError, TypeError):
            return None
    return data
