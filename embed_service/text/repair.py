"""Request bodies as JSON whose strings are valid Unicode.

Clients that cut JavaScript strings by UTF-16 unit send half an emoji ("\\ud83d"). The tokenizers and UTF-8 itself refuse such strings, so
each unpaired surrogate becomes U+FFFD, as the WHATWG encoding standard does.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

import orjson

from embed_service.errors import BadRequest

__all__ = ["parse_json", "repair"]


def repair(text: str) -> str:
    """`text` with each unpaired surrogate replaced by U+FFFD and each pair joined; a clean string comes back as it is."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def parse_json(body: bytes) -> Any:
    """The JSON value in `body`, every string repaired. Raises BadRequest where it is not JSON (NaN and Infinity are not)."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        cause = error
    # orjson refuses unpaired surrogates and bytes that are not UTF-8; the standard library reads the former.
    try:
        return _repaired(json.loads(_decode(body), parse_constant=_no_constant))
    except json.JSONDecodeError:
        raise BadRequest(f"The request body is not valid JSON: {cause}.", code="invalid_json") from None
    except RecursionError:
        raise BadRequest("The request body is nested too deeply. Send a flat JSON object.", code="invalid_json") from None
    except ValueError as error:
        raise BadRequest(f"The request body is not valid JSON: {error}.", code="invalid_json") from None


def _decode(body: bytes) -> str:
    try:
        return body.decode("utf-8-sig", "surrogatepass")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 (byte {error.start}); send the text encoded as UTF-8") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value; send a number or null")


def _repaired(value: Any) -> Any:
    if isinstance(value, str):
        return repair(value)
    if isinstance(value, list):
        return [_repaired(item) for item in value]
    if isinstance(value, dict):
        return {repair(key): _repaired(item) for key, item in value.items()}
    return value
