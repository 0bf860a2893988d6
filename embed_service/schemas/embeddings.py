"""POST /v1/embeddings."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, PlainValidator, WithJsonSchema

from embed_service.errors import BadRequest
from embed_service.schemas.fields import ModelName, Positive, Request, TruncateChoice, Whole, is_integer, kind_of
from embed_service.text.prompts import INPUT_TYPES

__all__ = ["MAX_ITEMS", "EmbeddingsRequest", "EmbeddingsResponse", "Usage"]

MAX_ITEMS = 2048
TOKEN_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}


def _input(value: Any) -> list[str] | list[int] | list[list[int]]:
    """A single string becomes a list of one."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        wanted = "a string, an array of strings, or token ids (an array of integers or of such arrays)"
        message = f"input: must be {wanted}, not {kind_of(value)}."
        raise BadRequest(message, param="input", code="invalid_type")
    if not value:
        raise BadRequest("input: must not be empty. Send at least one text.", param="input", code="invalid_value")
    if is_integer(value[0]):
        return _ids(value, "input")
    if len(value) > MAX_ITEMS:
        message = f"input: {len(value)} items; at most {MAX_ITEMS} per request. Split the request."
        raise BadRequest(message, param="input", code="too_many_items")
    expected = list if isinstance(value[0], list) else str
    for index, item in enumerate(value):
        if not isinstance(item, expected):
            wanted = "an array of token ids" if expected is list else "a string"
            message = f"input[{index}]: must be {wanted}, not {kind_of(item)}."
            raise BadRequest(message, param=f"input[{index}]", code="invalid_type")
    if expected is list:
        return [_ids(item, f"input[{index}]") for index, item in enumerate(value)]
    return value


def _ids(value: list[Any], param: str) -> list[int]:
    if not value:
        raise BadRequest(f"{param}: must not be empty. Send at least one token id.", param=param, code="invalid_value")
    if set(map(type, value)) == {int}:
        return value
    for index, item in enumerate(value):
        if not is_integer(item):
            message = f"{param}[{index}]: must be a token id (an integer), not {kind_of(item)}."
            raise BadRequest(message, param=f"{param}[{index}]", code="invalid_type")
    return [int(item) for item in value]


def _encoding_format(value: Any) -> Any:
    if value not in (None, "float", "base64"):
        raise ValueError('must be "float" or "base64"')
    return value


def _input_type(value: Any) -> Any:
    if value is not None and not (isinstance(value, str) and value.lower() in INPUT_TYPES):
        raise ValueError(f'is unknown. Use "query" or "document" (also known: {", ".join(INPUT_TYPES)})')
    return value


class EmbeddingsRequest(Request):
    """OpenAI's request, with the ways of other services to choose a prompt and a cut."""

    input: Annotated[
        list[str] | list[int] | list[list[int]],
        PlainValidator(_input),
        WithJsonSchema(
            {
                "description": "One text, 1 to 2,048 texts, the token ids of one text, or the token ids of 1 to 2,048 texts.",
                "anyOf": [
                    {"type": "string"},
                    {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MAX_ITEMS},
                    TOKEN_IDS,
                    {"type": "array", "items": TOKEN_IDS, "minItems": 1, "maxItems": MAX_ITEMS},
                ],
            }
        ),
    ]
    model: ModelName = None
    encoding_format: Annotated[Literal["float", "base64"] | None, BeforeValidator(_encoding_format)] = Field(
        None, description="`float` (default) or `base64` of little-endian float32."
    )
    dimensions: Positive | None = Field(None, description="Cut the vector to so many dimensions (Matryoshka) and renormalise it.")
    input_type: Annotated[
        str | None,
        BeforeValidator(_input_type),
        WithJsonSchema({"anyOf": [{"type": "string", "enum": list(INPUT_TYPES)}, {"type": "null"}]}),
    ] = Field(None, description="Use the model's own prompt for queries or documents, whatever the prompt policy.")
    prompt_name: str | None = Field(None, description="One of the model's prompts by name; goes before `input_type`.")
    instruction: str | None = Field(
        None, description="The task that the texts are queries of. Documents, and models without instructions, ignore it."
    )
    truncate: TruncateChoice = Field(
        None, description="Where to cut what is too long: true or `END` (default), `START`; false or `NONE` refuses it with 400."
    )
    truncate_prompt_tokens: Annotated[
        Whole | None,
        WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "integer", "const": -1}, {"type": "null"}]}),
    ] = Field(None, description="Cut each text to so many tokens; -1: the model's limit.")

    @property
    def texts(self) -> list[str]:
        return [item for item in self.input if isinstance(item, str)]

    @property
    def token_lists(self) -> list[list[int]]:
        return [self.input] if self.one_token_list else [item for item in self.input if isinstance(item, list)]  # type: ignore[list-item]

    @property
    def one_token_list(self) -> bool:
        """Whether `input` is the token ids of one text, so that its index is a token's."""
        return isinstance(self.input[0], int)

    def model_post_init(self, context: Any) -> None:
        if self.truncate_prompt_tokens is not None and self.truncate_prompt_tokens < 1 and self.truncate_prompt_tokens != -1:
            message = "truncate_prompt_tokens: must be 1 or more, or -1 for the model's limit."
            raise BadRequest(message, param="truncate_prompt_tokens", code="invalid_value")


class Usage(BaseModel):
    prompt_tokens: int = Field(description="Tokens of all texts as they were computed, special tokens included.")
    total_tokens: int
    truncated_inputs: int | None = Field(None, description="Texts that were cut; left out when none was.")


class Embedding(BaseModel):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str = Field(description="Unit vector; a string of base64 where asked for.")


class EmbeddingsResponse(BaseModel):
    object: Literal["list"]
    model: str
    data: list[Embedding]
    usage: Usage
