"""Reads request bodies: media type, size, JSON, schema."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from embed_service.errors import BadRequest, BodyTooLarge, UnsupportedMedia
from embed_service.routes.errors import ClientGone
from embed_service.schemas.fields import Request as Schema
from embed_service.settings import Settings
from embed_service.text.repair import parse_json

__all__ = ["read", "read_body", "read_json"]

S = TypeVar("S", bound=Schema)
LARGE_BYTES = 262_144  # from here on parsing takes milliseconds and goes to a thread


async def read(request: Request, schema: type[S]) -> S:
    """The body as `schema`. Raises BadRequest, BodyTooLarge, UnsupportedMedia, ClientGone."""
    body = await read_body(request)
    if len(body) < LARGE_BYTES:
        return schema.read(parse_json(body))
    return await asyncio.to_thread(lambda: schema.read(parse_json(body)))


async def read_json(request: Request) -> dict[str, Any]:
    """The body as a JSON object, not validated further."""
    body = await read_body(request)
    value = parse_json(body) if len(body) < LARGE_BYTES else await asyncio.to_thread(parse_json, body)
    if not isinstance(value, dict):
        raise BadRequest("The body must be a JSON object.", code="invalid_type")
    return value


async def read_body(request: Request) -> bytes:
    """The bytes of the body, at most MAX_BODY_MIB."""
    _check_media(request)
    settings: Settings = request.app.state.settings
    most = settings.max_body_mib * 1_048_576
    message = f"The body is larger than MAX_BODY_MIB = {settings.max_body_mib}. Send fewer texts per request, or raise the setting."
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > most:
        raise BodyTooLarge(message, code="body_too_large")
    chunks: list[bytes] = []
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > most:
                raise BodyTooLarge(message, code="body_too_large")
            chunks.append(chunk)
    except ClientDisconnect:
        raise ClientGone from None
    if not size:
        raise BadRequest("The request body is empty. Send a JSON object.", code="invalid_json")
    return b"".join(chunks)


def _check_media(request: Request) -> None:
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media and media != "application/json" and not media.endswith("+json"):
        message = f"The content type {media[:80]!r} is not JSON. Send it as JSON (curl: -H 'content-type: application/json')."
        raise UnsupportedMedia(message, code="unsupported_media_type")
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        message = f"The content encoding {encoding[:80]!r} is not supported. Send the body uncompressed."
        raise UnsupportedMedia(message, code="unsupported_encoding")
