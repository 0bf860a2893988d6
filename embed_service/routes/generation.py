"""Single-URL mode: POST /v1/completions and /v1/chat/completions, forwarded to GENERATION_URL.

A client with one address for everything then works. Streams pass through as they come.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import httpx
import orjson
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from embed_service.generation.backend_errors import unreachable
from embed_service.generation.forwarder import CHAT, COMPLETION, Answer, GenerationForwarder, Route
from embed_service.routes.body import read_json
from embed_service.routes.disconnect import while_connected
from embed_service.schemas.generation import ChatCompletionRequest, CompletionRequest

router = APIRouter(tags=["generation"])
LONGEST_HEADER = 1_000  # characters


@router.post(CHAT)
async def chat_completions(request: Request) -> Response:
    """A chat, answered by the server at GENERATION_URL; thinking is off unless the client turns it on."""
    return await _forward(request, CHAT, ChatCompletionRequest)


@router.post(COMPLETION)
async def completions(request: Request) -> Response:
    """A completion, answered by the server at GENERATION_URL."""
    return await _forward(request, COMPLETION, CompletionRequest)


def forwarder_of(request: Request) -> GenerationForwarder:
    """The process's forwarder, made at its first use; the application closes it (`app.state.forwarder.aclose()`)."""
    state = request.app.state
    if getattr(state, "forwarder", None) is None:
        state.forwarder = GenerationForwarder(state.settings)
    return state.forwarder  # type: ignore[no-any-return]


class _Stream(StreamingResponse):
    """Closes the server's side in every case: at the end, when the client leaves, and when nothing was ever sent."""

    def __init__(self, answer: Answer, held: AsyncExitStack, headers: dict[str, str]) -> None:
        media_type = answer.response.headers.get("content-type", "text/event-stream")
        unbuffered = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(_chunks(answer), media_type=media_type, headers=headers | unbuffered)
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._held:
            await super().__call__(scope, receive, send)


async def _chunks(answer: Answer) -> AsyncIterator[bytes]:
    """The stream as it comes, ended by an error event if the server breaks off."""
    try:
        async for chunk in answer.response.aiter_raw():
            yield chunk
    except httpx.TransportError as error:
        said = unreachable(error, answer.response.request.extensions["timeout"]["read"])
        fields = {"message": said.message, "type": said.type, "param": None, "code": said.code}
        yield b"\n\ndata: " + orjson.dumps({"error": fields, "detail": said.message}) + b"\n\n"


async def _forward(request: Request, path: Route, schema: type[ChatCompletionRequest | CompletionRequest]) -> Response:
    forwarder = forwarder_of(request)
    forwarder.require_configured()
    body = await read_json(request)
    schema.read(body)
    async with AsyncExitStack() as held:
        forwarding = forwarder.forward(path, body, via=request.headers.get("via", ""))
        answer = await while_connected(request, held.enter_async_context(forwarding))
        told = {"x-model": str(answer.model or ""), "x-dropped-fields": ", ".join(answer.dropped)}
        headers = {name: _header_value(text) for name, text in told.items() if text}
        if body.get("stream"):
            return _Stream(answer, held.pop_all(), headers)
        content = await while_connected(request, forwarder.read(answer))
        return Response(content, media_type="application/json", headers=headers)


def _header_value(text: str) -> str:
    """`text`, which may be the client's own, as a header may have it: printable ASCII."""
    return "".join(c if " " <= c <= "~" else "?" for c in text[:LONGEST_HEADER])
