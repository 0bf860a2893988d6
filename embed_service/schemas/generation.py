"""Requests for text. Only what is needed to forward them is checked: the rest is between the client and the server behind."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field

from embed_service.schemas.fields import Flag, Request

__all__ = ["ChatCompletionRequest", "CompletionRequest"]


class _Forwarded(Request):
    """Every other field is passed on, unless the server at GENERATION_URL refuses it."""

    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())

    model: Any = Field(None, description="Advisory: a name that the server at GENERATION_URL does not list is replaced by its own.")
    stream: Flag = Field(None, description="Server-sent events, passed on as they come.")


class ChatCompletionRequest(_Forwarded):
    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]


class CompletionRequest(_Forwarded):
    prompt: str | list[str] | list[int] | list[list[int]]
