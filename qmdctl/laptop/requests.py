"""The requests that QMD sends, to one name, and what each refusal means to the owner of a laptop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

from qmdctl.laptop.dial import WHERE
from qmdctl.probes import DOCUMENTS, QUERY, Broken, Probe, json_or_none, json_path, state_of

HEALTH_SECONDS = 5  # the shortest that a QMD client gives it
SYSTEM = "You expand search queries. Write four lines, each beginning with lex:, vec: or hyde:, and nothing else."
# As chronologos/qmd sends them: embeddinggemma's prefixes and model names of its own, whatever is served. `lex:` at the end of the
# completion is ours: a model that ends at once on a bare question goes on from there.
QMD: Mapping[str, Mapping[str, Any]] = {
    "embedding": {
        "model": "hf:ggml-org/embeddinggemma-300M-GGUF/embeddinggemma-300M-Q8_0.gguf",
        "input": [f"task: search result | query: {QUERY}", *(f"title: none | text: {text}" for text in DOCUMENTS)],
    },
    "rerank": {"model": "ExpedientFalcon/qwen3-reranker:0.6b-q8_0", "query": QUERY, "documents": DOCUMENTS},
    "completion": {"prompt": f"/no_think Expand this search query: {QUERY}\nlex:", "max_tokens": 16, "temperature": 0},
    "chat": {
        "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"/no_think {QUERY}"}],
        "max_tokens": 48,
        "temperature": 0,
        "top_p": 0.8,
        "top_k": 20,
    },
}
NO_KEY = "qmdctl test --key-file FILE (or QMD_API_KEY), with a key that the box's owner gave you (there: qmdctl keys add NAME)"


class LaptopProbe(Probe):
    """`key` is None where none was given: then any bearer is sent, as clients that insist on one do."""

    def __init__(self, service: str, url: str, timeout_seconds: float, key: str | None, client: httpx.Client) -> None:
        super().__init__(service, url, timeout_seconds, key or "any", client, QMD, WHERE)
        self.own_key = key

    def health(self) -> str:
        """Green within `HEALTH_SECONDS`."""
        limit, self.timeout_seconds = self.timeout_seconds, min(HEALTH_SECONDS, self.timeout_seconds)
        try:
            answer = self._send("GET", "/health")
        finally:
            self.timeout_seconds = limit
        body = json_or_none(answer)
        if answer.status_code == 503 and isinstance(body, dict):
            said = state_of(answer)
            loading = body.get("status") == "loading"
            raise Broken(
                f"it is up but not ready{said}",
                "wait, and try again" if loading else self.fix(f"qmdctl status; qmdctl logs {self.service}"),
            )
        if answer.status_code != 200:
            raise self.refused("/health", answer, body)
        if answer.content and not isinstance(body, dict):  # vLLM's is empty
            raise self.refused("/health", answer, body)
        return self.answered(body)

    def rerank(self, *, fitting_first: bool = True) -> str:
        return super().rerank(fitting_first=fitting_first)

    def refused(self, path: str, answer: httpx.Response, data: Any) -> Broken:
        status = answer.status_code
        message = json_path(data, "error", "message")
        said = f": {message}" if message else ""
        if status == 401:
            why = "the key that was sent is not one of its keys" if self.own_key else "it wants an API key, and none was given"
            return Broken(f"{path} answered 401: {why}", NO_KEY)
        if status == 403:
            return Broken(
                f"{path} answered 403{said or ': this device lacks the capability that the service demands'}",
                "the tailnet's owner grants the capability to this device in the policy (docs/tailnet-policy.md)",
            )
        if status in (502, 504):
            steps = f"qmdctl status; qmdctl start {self.service}; qmdctl health"
            return Broken(f"{path} answered {status}: the sidecar answers, but does not reach the service behind it", self.fix(steps))
        if status == 404 and path.endswith("completions") and self.service == "embed":
            return Broken(
                f"{path} answered 404{said}: this address does not forward generation",
                f"--generate-url https://NAME of vLLM; or {self.fix('set GENERATION_URL in .env, then: qmdctl up')}",
            )
        if 300 <= status < 400:
            return Broken(
                f"{path} answered {status}, a redirect to {answer.headers.get('location', '?')}: another server answers here", _other()
            )
        kind = answer.headers.get("content-type", "").split(";")[0] or "no type"
        if not isinstance(data, dict) and ("html" in kind or status == 200):
            return Broken(f"{path} answered {status} with {kind}, not JSON: another server answers here: {_start(answer)}", _other())
        waits = f" (Retry-After: {answer.headers['retry-after']} s)" if "retry-after" in answer.headers else ""
        return Broken(
            f"{path} answered {status}{waits}{said or ': ' + _start(answer)}", self.fix(f"qmdctl status; qmdctl logs {self.service}")
        )


def _other() -> str:
    return f"a portal or proxy in between? {WHERE}qmdctl health"


def _start(answer: httpx.Response) -> str:
    return repr(" ".join(answer.text.split())[:80])
