"""What the generation server's errors become for our clients: never 422 or 429, and the message names what to mend."""

from __future__ import annotations

import httpx
import orjson

from embed_service.errors import BadRequest, BodyTooLarge, InternalError, NotFound, ServiceError, Unavailable

LONGEST_MESSAGE = 2_000  # characters
LONGEST_LOCATION = 200
BUSY = frozenset({408, 425, 429, 502, 503, 504})


def from_answer(response: httpx.Response) -> ServiceError:
    """The error for an answer with a status from 300 up, its body read."""
    if response.status_code < 400:
        where = response.headers.get("location", "another address")[:LONGEST_LOCATION]
        return Unavailable(
            f"The server at GENERATION_URL redirects ({response.status_code}) to {where}. Set GENERATION_URL to the address it leads to.",
            retry_after_seconds=30,
            code="generation_unavailable",
        )
    status, said = response.status_code, message_of(response.text)
    parameter = parameter_of(response.text)
    if status in (401, 403):
        return Unavailable(
            f"The server at GENERATION_URL refused the key ({status}: {said}). Put its key into the file named by GENERATION_API_KEY_FILE.",
            retry_after_seconds=30,
            code="generation_key_refused",
        )
    if status in BUSY:
        return Unavailable(
            f"The server at GENERATION_URL is not ready ({status}: {said}).",
            retry_after_seconds=_retry_after(response),
            code="generation_unavailable",
        )
    if status == 404:
        return NotFound(f"The server at GENERATION_URL answered 404: {said}. Look at GENERATION_URL and GENERATION_MODEL.", param=parameter)
    if status == 413:
        return BodyTooLarge(f"The server at GENERATION_URL answered 413: {said}", param=parameter)
    if status < 500:
        return BadRequest(f"The server at GENERATION_URL answered {status}: {said}", param=parameter)
    return InternalError(f"The server at GENERATION_URL answered {status}: {said}")


def unreachable(error: Exception, seconds: float) -> Unavailable:
    """The error for a server that cannot be reached, or gave no answer within `seconds`."""
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        what = "cannot be reached"
    elif isinstance(error, httpx.TimeoutException | TimeoutError):
        what = f"gave no answer within {seconds:g} s"
    else:
        what = f"broke off ({type(error).__name__})"
    return Unavailable(
        f"The server at GENERATION_URL {what}. Start it, or correct GENERATION_URL.", retry_after_seconds=5, code="generation_unavailable"
    )


def message_of(text: str, longest: int = LONGEST_MESSAGE) -> str:
    """The sentence in an error body: OpenAI's, FastAPI's and Ollama's forms, else the text itself."""
    try:
        payload = orjson.loads(text)
    except orjson.JSONDecodeError:
        return text[:longest].strip() or "no text"
    said = payload
    for name in ("error", "message", "detail"):
        if isinstance(said, dict) and name in said:
            said = said[name]
    return (said if isinstance(said, str) else orjson.dumps(said).decode())[:longest]


def parameter_of(text: str) -> str | None:
    """`error.param` of an error body in OpenAI's form."""
    try:
        parameter = orjson.loads(text)["error"]["param"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None
    return parameter if isinstance(parameter, str) else None


def _retry_after(response: httpx.Response) -> int:
    given = response.headers.get("retry-after", "")
    return min(int(given), 60) if given.isdecimal() else 5
