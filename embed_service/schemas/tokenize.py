"""POST /tokenize and /detokenize."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field, PlainValidator, WithJsonSchema

from embed_service.errors import BadRequest
from embed_service.schemas.fields import Flag, ModelName, Request, is_integer, kind_of

__all__ = ["DetokenizeRequest", "DetokenizeResponse", "TokenizeRequest", "TokenizeResponse"]


class TokenizeRequest(Request):
    """One of `input`, `text` and `prompt`."""

    input: str | None = None
    text: str | None = None
    prompt: str | None = None
    model: ModelName = None
    add_special_tokens: Flag = Field(None, description="Default true.")

    def model_post_init(self, context: Any) -> None:
        if self.input is None and self.text is None and self.prompt is None:
            raise BadRequest("input: this field is required (or `text`, or `prompt`).", param="input", code="missing")

    @property
    def content(self) -> str:
        return next(text for text in (self.input, self.text, self.prompt) if text is not None)


class TokenizeResponse(BaseModel):
    tokens: list[int]
    count: int
    max_model_len: int = Field(description="The longest sequence that this model computes, in tokens.")


def _tokens(value: Any) -> list[int]:
    if not isinstance(value, list):
        raise BadRequest(f"tokens: must be an array of token ids, not {kind_of(value)}.", param="tokens", code="invalid_type")
    for index, item in enumerate(value):
        if not is_integer(item):
            message = f"tokens[{index}]: must be a token id (an integer), not {kind_of(item)}."
            raise BadRequest(message, param=f"tokens[{index}]", code="invalid_type")
    return [int(item) for item in value]


class DetokenizeRequest(Request):
    tokens: Annotated[list[int], PlainValidator(_tokens), WithJsonSchema({"type": "array", "items": {"type": "integer", "minimum": 0}})]
    model: ModelName = None
    skip_special_tokens: Flag = Field(None, description="Leave special tokens out of the text; default false.")


class DetokenizeResponse(BaseModel):
    prompt: str
    text: str
