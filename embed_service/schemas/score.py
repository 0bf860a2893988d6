"""POST /v1/score, in vLLM's shape."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, PlainValidator, WithJsonSchema

from embed_service.errors import BadRequest
from embed_service.schemas.embeddings import Usage
from embed_service.schemas.fields import Flag, ModelName, Positive, Request, TruncateChoice, text_list
from embed_service.schemas.rerank import MAX_DOCUMENTS

__all__ = ["FIRST", "SECOND", "ScoreRequest", "ScoreResponse"]

# The names that vLLM's versions have for the two sides of a pair.
FIRST = ("text_1", "queries", "data_1")
SECOND = ("text_2", "documents", "data_2")


def _either(name: str) -> tuple[Any, ...]:
    def check(value: Any) -> Any:
        return value if value is None or isinstance(value, str) else text_list(value, name, MAX_DOCUMENTS, least=1)

    texts = {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MAX_DOCUMENTS}
    return PlainValidator(check), WithJsonSchema({"anyOf": [{"type": "string"}, texts, {"type": "null"}]})


class ScoreRequest(Request):
    """`text_1`/`text_2` or `queries`/`documents`: one with each of many (1:N), or two lists of one length (N:N)."""

    text_1: Annotated[str | list[str] | None, *_either("text_1")] = None
    text_2: Annotated[str | list[str] | None, *_either("text_2")] = None
    data_1: Annotated[str | list[str] | None, *_either("data_1")] = Field(None, description="Another name of `text_1`.")
    data_2: Annotated[str | list[str] | None, *_either("data_2")] = Field(None, description="Another name of `text_2`.")
    queries: Annotated[str | list[str] | None, *_either("queries")] = Field(None, description="Another name of `text_1`.")
    documents: Annotated[str | list[str] | None, *_either("documents")] = Field(None, description="Another name of `text_2`.")
    model: ModelName = None
    instruction: str | None = Field(None, description="The task; rerankers without instructions ignore it.")
    max_tokens_per_doc: Positive | None = Field(None, description="Cut each second text to so many tokens.")
    raw_scores: Flag = Field(None, description="Scores before the sigmoid.")
    truncate: TruncateChoice = Field(None, description="false or `NONE` refuses what is too long with 400; default: cut it.")

    def pairs(self) -> list[tuple[str, str]]:
        """The pairs in order. Raises BadRequest where the lengths do not fit."""
        first_name, first = self._given(FIRST)
        second_name, second = self._given(SECOND)
        left = [first] if isinstance(first, str) else first
        right = [second] if isinstance(second, str) else second
        if len(left) == 1:
            left = left * len(right)
        if len(left) != len(right):
            message = f"{second_name}: {len(right)} texts for {len(left)} in {first_name}. Send one for all (1:N) or equally many (N:N)."
            raise BadRequest(message, param=second_name, code="invalid_value")
        return list(zip(left, right, strict=True))

    @property
    def first_name(self) -> str:
        return self._given(FIRST)[0]

    @property
    def second_name(self) -> str:
        return self._given(SECOND)[0]

    def _given(self, names: tuple[str, ...]) -> tuple[str, str | list[str]]:
        for name in names:
            value: str | list[str] | None = getattr(self, name)
            if value is not None:
                return name, value
        raise BadRequest(f"{names[0]}: this field is required (or {' or '.join(names[1:])}).", param=names[0], code="missing")


class Score(BaseModel):
    index: int
    object: Literal["score"]
    score: float


class ScoreResponse(BaseModel):
    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Score]
    usage: Usage
