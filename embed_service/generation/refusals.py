"""Which fields of a request an OpenAI-compatible server refused, read from its error, and a memory of them.

Servers differ in what they know beside the OpenAI fields: vLLM takes `repeat_penalty` in silence, `transformers serve` answers 422
"Unexpected fields in the request: {…}", vLLM 0.12 knows `reasoning_effort` but not its value "none".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from embed_service.generation.backend_errors import message_of, parameter_of

Body = dict[str, Any]

ESSENTIAL = frozenset({"model", "messages", "prompt", "stream"})
# Their values belong to the client: a wrong one is the client's error, so they are dropped only where the server does not know the field.
# fmt: off
STANDARD = frozenset({
    "audio", "best_of", "echo", "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs", "max_completion_tokens",
    "max_tokens", "metadata", "modalities", "n", "parallel_tool_calls", "prediction", "presence_penalty", "response_format", "seed", "stop",
    "stream_options", "suffix", "temperature", "tool_choice", "tools", "top_logprobs", "top_p", "user",
})
# fmt: on
_UNKNOWN = re.compile(r"unexpected|unknown|unrecogni[sz]ed|unsupported|not support|not permitted|not allowed|extra|forbidden", re.I)
_LOCATION = re.compile(r"""['"]loc['"]:\s*[(\[]\s*['"]body['"],\s*['"](\w+)""")
MOST_REMEMBERED = 512
LONGEST_REMEMBERED_VALUE = 256  # bytes as JSON
LONGEST_SEARCHED = 20_000  # characters of an error


class Refusals:
    """What one server is known to refuse: a field, or a field with one value."""

    def __init__(self) -> None:
        self._known: set[tuple[str, str, bytes | None]] = set()

    def drop_known(self, path: str, body: Body) -> list[str]:
        """Remove from `body` what the server has refused before; the names removed."""
        gone = [f for f in body if (path, f, None) in self._known or (path, f, _key(body[f])) in self._known]
        for field in gone:
            del body[field]
        return gone

    def drop_named(self, path: str, body: Body, error: str) -> list[str]:
        """Remove from `body` what `error`, the body of a 400 or 422, names, and remember it; the names removed."""
        unknown = _UNKNOWN.search(error) is not None
        gone = [f for f in named_fields(error, body) if f not in ESSENTIAL and (unknown or f not in STANDARD)]
        for field in gone:
            value = body.pop(field)
            key = None if unknown and field not in STANDARD else _key(value)
            if len(self._known) < MOST_REMEMBERED and (key is None or len(key) <= LONGEST_REMEMBERED_VALUE):
                self._known.add((path, field, key))
        return gone

    def clear(self) -> None:
        self._known.clear()


def named_fields(error: str, fields: Iterable[str]) -> list[str]:
    """Those of `fields` that the error body names as refused.

    The most certain sign that is there counts alone, because validation errors often repeat the whole request: `error.param` (OpenAI), the
    `loc` of a validation error (FastAPI, vLLM), names in quotes, bare names.
    """
    fields = list(fields)
    parameter = (parameter_of(error) or "").split(".")[0]
    if parameter in fields:
        return [parameter]
    said = message_of(error, LONGEST_SEARCHED)
    if "'loc'" in said or '"loc"' in said:
        located = set(_LOCATION.findall(said))
        return [f for f in fields if f in located]
    quoted = [f for f in fields if re.search(rf"""['"`]{re.escape(f)}['"`]""", said)]
    return quoted or [f for f in fields if re.search(rf"(?<!\w){re.escape(f)}(?!\w)", said)]


def _key(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()
