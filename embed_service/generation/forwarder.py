"""Requests for text, sent on to the server at GENERATION_URL."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx
import orjson

from embed_service.errors import BadRequest, NotFound, Unavailable
from embed_service.generation import backend_errors, thinking
from embed_service.generation.refusals import Refusals
from embed_service.settings import Settings

Route = Literal["/v1/completions", "/v1/chat/completions"]
CHAT: Route = "/v1/chat/completions"
COMPLETION: Route = "/v1/completions"

CONNECT_SECONDS = 5.0
MOST_TRIES = 8  # of one request, each with fewer fields than the one before
MODEL_LIST_SECONDS = 5.0
MODEL_LIST_RETRY_SECONDS = 30.0  # a server without a usable /v1/models is not asked for it with every request


@dataclass
class Answer:
    """A 200 from the server, its body unread. `dropped`: fields of the client's that the server refuses."""

    response: httpx.Response
    dropped: list[str]
    model: Any  # the name sent; a client may send anything, and keeps it where the server lists no names
    thinking_off: bool
    deadline: float  # on the event loop's clock


class GenerationForwarder:
    """One per process: a pool of kept-alive connections, the served model's name, and what the server refuses."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._deadline = settings.request_deadline_seconds
        self._names: list[str] | None = None  # of the server's models; None: not known
        self._asked = -MODEL_LIST_RETRY_SECONDS
        self._asking = asyncio.Lock()
        self._refusals = Refusals()
        self._mark = f"qmd-{uuid.uuid4().hex}"
        # A proxy in the environment is for downloads: the operator's own server is reached directly.
        self._client = httpx.AsyncClient(
            base_url=settings.generation_url or "http://generation.invalid",
            timeout=httpx.Timeout(self._deadline, connect=CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=32, keepalive_expiry=30),
            verify=ssl.create_default_context(),
            trust_env=False,
            headers={"accept-encoding": "identity"},  # compressed streams would be held back
        )

    async def aclose(self) -> None:
        await self._client.aclose()

    def require_configured(self) -> None:
        """Raises NotFound (clients retry a 503, and there is nothing to wait for)."""
        if not self._settings.generation_url:
            raise NotFound(
                "No server for text generation is configured here: set GENERATION_URL to an OpenAI-compatible one, for example http://vllm:8000.",
                code="generation_not_configured",
            )

    async def names(self, *, via: str = "") -> list[str]:
        """The names under which the server answers; none where there is none, or it does not tell them now."""
        if not self._settings.generation_url or self._mark in via:
            return []
        if self._settings.generation_model:
            return [self._settings.generation_model]
        try:
            async with asyncio.timeout(MODEL_LIST_SECONDS):
                return await self._model_names() or []
        except (httpx.TransportError, TimeoutError, Unavailable):
            return []

    @asynccontextmanager
    async def forward(self, path: Route, body: dict[str, Any], *, via: str = "") -> AsyncIterator[Answer]:
        """Send `body` on, without what the server refuses, and yield its answer; the connection is released at the end.

        `via`: the client's Via header (RFC 9110, 7.6.3), by which a request that comes back to us is known.
        Raises NotFound (no server configured), BadRequest, Unavailable and the like: the server's errors in our form.
        """
        self.require_configured()
        if self._mark in via:
            raise BadRequest(
                "GENERATION_URL leads back to this service. Point it at the server that generates text.", code="forwarding_loop"
            )
        answer: Answer | None = None
        try:
            deadline = asyncio.get_running_loop().time() + self._deadline
            async with asyncio.timeout_at(deadline):
                answer = await self._answer(path, dict(body), f"{via}, 1.1 {self._mark}".lstrip(", "), deadline)
        except (httpx.TransportError, TimeoutError) as error:
            if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
                self._forget()
            raise backend_errors.unreachable(error, self._deadline) from error
        try:
            yield answer
        finally:
            await answer.response.aclose()

    async def read(self, answer: Answer) -> bytes:
        """The whole body of an answer that is not a stream, as JSON, without thinking."""
        try:
            async with asyncio.timeout_at(answer.deadline):
                content = await answer.response.aread()
        except (httpx.TransportError, TimeoutError) as error:
            raise backend_errors.unreachable(error, self._deadline) from error
        try:
            payload = orjson.loads(content)
        except orjson.JSONDecodeError:
            payload = None
        if not isinstance(payload, dict):
            raise Unavailable(
                "The server at GENERATION_URL answered 200 with something that is not JSON. Is GENERATION_URL an OpenAI-compatible server?",
                retry_after_seconds=30,
                code="generation_unavailable",
            )
        return orjson.dumps(payload) if answer.thinking_off and thinking.strip(payload) else content

    async def _answer(self, path: Route, body: dict[str, Any], via: str, deadline: float) -> Answer:
        asked = set(body)
        off = thinking.turn_off(body) if path == CHAT else False
        await self._name_model(body)
        dropped = self._refusals.drop_known(path, body)
        renamed = False
        for last in (*[False] * (MOST_TRIES - 1), True):
            response = await self._send(path, body, via)
            if response.status_code < 300:
                return Answer(response, sorted(asked.intersection(dropped)), body.get("model"), off, deadline)
            await response.aread()
            if last or response.status_code not in (400, 404, 422):
                break
            if not renamed and self._refuses_model(response, body):
                renamed = True
                await self._rename_model(body)
            elif response.status_code != 404 and (gone := self._refusals.drop_named(path, body, response.text)):
                dropped += gone
            else:
                break
        raise backend_errors.from_answer(response)

    async def _send(self, path: str, body: dict[str, Any], via: str) -> httpx.Response:
        headers = {"content-type": "application/json", "via": via, **self._authorization()}
        content = _encode(body)
        try:
            return await self._client.send(self._client.build_request("POST", path, content=content, headers=headers), stream=True)
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
            # A kept-alive connection that the server closed in the same moment.
            return await self._client.send(self._client.build_request("POST", path, content=content, headers=headers), stream=True)

    def _authorization(self) -> dict[str, str]:
        """Never the client's key: it is for this service. The file is read anew, so that a changed key needs no restart."""
        file = self._settings.generation_api_key_file
        if not file:
            return {}
        try:
            key = Path(file).read_text().strip()
        except OSError as error:
            raise Unavailable(
                f"GENERATION_API_KEY_FILE cannot be read ({error.strerror}). Correct it, or unset it if the server needs no key.",
                retry_after_seconds=30,
            ) from error
        return {"authorization": f"Bearer {key}"} if key else {}

    async def _name_model(self, body: dict[str, Any]) -> None:
        """Put the served model's name in; the client's stays where it is one of the server's, or the server does not tell."""
        if self._settings.generation_model:
            body["model"] = self._settings.generation_model
            return
        names = await self._model_names()
        if names and body.get("model") not in names:
            body["model"] = names[0]

    async def _rename_model(self, body: dict[str, Any]) -> None:
        """After a refusal of the model's name: the list again; no name at all if that has nothing new."""
        refused = body["model"]
        self._forget()
        await self._name_model(body)
        if body["model"] == refused:
            del body["model"]

    def _refuses_model(self, response: httpx.Response, body: dict[str, Any]) -> bool:
        name = body.get("model")
        if name is None or self._settings.generation_model:
            return False
        text = response.text
        return backend_errors.parameter_of(text) == "model" or str(name) in backend_errors.message_of(text)

    async def _model_names(self) -> list[str] | None:
        async with self._asking:
            if self._names is None and time.monotonic() - self._asked >= MODEL_LIST_RETRY_SECONDS:
                self._names = await self._ask_names()
                self._asked = time.monotonic()
            return self._names

    async def _ask_names(self) -> list[str] | None:
        try:
            headers = {"via": f"1.1 {self._mark}", **self._authorization()}
            response = await self._client.get("/v1/models", headers=headers, timeout=MODEL_LIST_SECONDS)
            listed = orjson.loads(response.content)["data"] if response.status_code == 200 else []
            return [entry["id"] for entry in listed if isinstance(entry["id"], str)] or None
        except (httpx.ConnectError, httpx.ConnectTimeout):
            raise
        except (httpx.TransportError, orjson.JSONDecodeError, KeyError, TypeError):
            return None

    def _forget(self) -> None:
        """The server may come back as another one."""
        self._names = None
        self._asked = -MODEL_LIST_RETRY_SECONDS
        self._refusals.clear()


def _encode(body: dict[str, Any]) -> bytes:
    """Not orjson: JSON's integers may have more than 64 bits."""
    try:
        return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    except RecursionError:
        raise BadRequest("The request body is nested too deeply. Send a flat JSON object.", code="invalid_json") from None
