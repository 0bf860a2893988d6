"""Types that several requests share, and errors that name the field."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema

from embed_service.errors import BadRequest

__all__ = ["Count", "Flag", "ModelName", "Positive", "Request", "TruncateChoice", "Whole", "is_integer", "kind_of", "text_list"]


class Request(BaseModel):
    """A request's body. Unknown fields are ignored, as OpenAI-like clients expect; null is the same as absent."""

    model_config = ConfigDict(extra="ignore", strict=True, protected_namespaces=())

    @classmethod
    def read(cls, body: Any) -> Self:
        """Validate a parsed body. Raises BadRequest that names the first field at fault."""
        if not isinstance(body, dict):
            raise BadRequest(f"The body must be a JSON object, not {kind_of(body)}.", code="invalid_type")
        try:
            return cls.model_validate(body)
        except ValidationError as error:
            raise _bad_request(error) from None


def _bad_request(error: ValidationError) -> BadRequest:
    first = error.errors(include_url=False, include_context=False)[0]
    # A union's errors end in the name of the branch; the field is what the client knows.
    param = str(first["loc"][0]) if first["loc"] else None
    if first["type"] == "missing":
        return BadRequest(f"{param}: this field is required.", param=param, code="missing")
    message = first["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    return BadRequest(f"{param}: {message}." if param else f"{message}.", param=param, code="invalid_value")


def is_integer(value: Any) -> bool:
    """JSON has one kind of number: 12.0 is the integer 12; true is none."""
    return (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, float) and value.is_integer())


def kind_of(value: Any) -> str:
    """The JSON type of `value` in words."""
    if value is None:
        return "null"
    for types, name in ((bool, "a boolean"), ((int, float), "a number"), (str, "a string"), (list, "an array")):
        if isinstance(value, types):
            return name
    return "an object"


def text_list(value: Any, param: str, most: int, *, objects: bool = False, least: int = 0) -> list[str]:
    """A list of strings, or of objects with a `text` where `objects`. Raises BadRequest with the index."""
    if not isinstance(value, list):
        raise BadRequest(f"{param}: must be an array of strings, not {kind_of(value)}.", param=param, code="invalid_type")
    if len(value) < least:
        raise BadRequest(f"{param}: must not be empty.", param=param, code="invalid_value")
    if len(value) > most:
        raise BadRequest(f"{param}: {len(value)} items; at most {most} per request. Split the request.", param=param, code="too_many_items")
    texts = []
    for index, item in enumerate(value):
        if objects and isinstance(item, dict):
            name = f"{param}[{index}].text"
            if "text" not in item:
                raise BadRequest(f"{name}: this field is required.", param=name, code="missing")
            item = item["text"]
        else:
            name = f"{param}[{index}]"
        if not isinstance(item, str):
            raise BadRequest(f"{name}: must be a string, not {kind_of(item)}.", param=name, code="invalid_type")
        texts.append(item)
    return texts


def _integer(value: Any) -> Any:
    return int(value) if is_integer(value) else value


def _truncate(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return {None: None, True: "END", False: "NONE"}[value]
    if isinstance(value, str) and value.upper() in ("END", "START", "NONE", "LEFT", "RIGHT"):
        return {"LEFT": "START", "RIGHT": "END"}.get(value.upper(), value.upper())
    raise ValueError('must be true, false, "END", "START" or "NONE"')


Whole = Annotated[int, BeforeValidator(_integer)]
Count = Annotated[int, Field(ge=0), BeforeValidator(_integer)]
Positive = Annotated[int, Field(ge=1), BeforeValidator(_integer)]
Flag = bool | None

# Real clients send names that match nothing; whatever it is, the served model answers.
ModelName = Annotated[
    Any, WithJsonSchema({"description": "Advisory: any value is answered by the served model. A configured alias is echoed."})
]

TruncateChoice = Annotated[
    str | None,
    BeforeValidator(_truncate),
    WithJsonSchema(
        {"anyOf": [{"type": "boolean"}, {"type": "string", "enum": ["END", "START", "NONE", "end", "start", "none"]}, {"type": "null"}]}
    ),
]
