"""What goes over the control socket: one command, then lines of JSON until `done` or `error`.

{"command": "switch", "embed_model": "Qwen/Qwen3-Embedding-0.6B"}
{"phase": "draining", "requests": 3, "queued_tokens": 5120}          while requests in flight are answered
{"phase": "downloading", "done_bytes": 1200, "total_bytes": 8000}    the engine's phases, as they change
{"done": true, "state": "serving", "models": {…}, "revisions": {…}, "fingerprint": "…"}
{"error": "…", "code": "not_found", "state": "serving"}              instead of `done`
"""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

__all__ = ["LINE_BYTES", "Command", "ControlError", "encode", "parse"]

LINE_BYTES = 64 * 1024


class ControlError(Exception):
    """A command that was not carried out. `message` says why and what to do, `code` is for programs."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Command(BaseModel):
    """`timeout_seconds`: most that a pause waits for requests in flight, a resume for the models, a switch for both together."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    command: Literal["pause", "resume", "status", "switch"]
    embed_model: str | None = None
    embed_revision: str | None = None
    rerank_model: str | None = None
    rerank_revision: str | None = None
    timeout_seconds: float | None = Field(None, gt=0, allow_inf_nan=False)

    @field_validator("embed_model", "embed_revision", "rerank_model", "rerank_revision")
    @classmethod
    def _not_blank(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("must not be blank")
        return value and value.strip()


def parse(line: bytes) -> Command:
    """The command of one line. Raises ControlError (bad_command), which names the field."""
    try:
        return Command.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or "the command"
        raise ControlError("bad_command", f"{name}: {first['msg']}.") from None


def encode(message: dict[str, Any]) -> bytes:
    return json.dumps(message, ensure_ascii=False).encode() + b"\n"
