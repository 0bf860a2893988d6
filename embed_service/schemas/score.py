"""POST /v1/score, in vLLM's shape."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, PlainValidator, WithJsonSchema

from embed_service.errors import BadRequest
from embed_service.schemas.embeddings import Usage
from embed_service.schemas.fields import Flag, ModelName, Positive, Request, TruncateChoice, text_list
from embed_service.schemas.rerank import MAX_DOCUMENTS

__all__ = ["ScoreRequest", "ScoreResponse"]


def _either(name: str) -> tuple[Any, ...]:
    def check(value: Any) -> Any:
        return value if value is None or isinstance(value, str) else text_list(value, name, MAX_DOCUMENTS, least=1)

    texts = {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MAX_DOCUMENTS}
    return PlainValidator(check), WithJsonSchema({"anyOf": [{"type": "string"}, texts, {"type": "null"}]})


class ScoreRequest(Request):
    """`text_1`/`text_2` or `queries`/`documents`: one with each of many (1:N), or two lists of one length (N:N)."""

    text_1: Annotated[str | list[str] | None, *_either("text_1")] = None
    text_2: Annotated[str | list[str] | None, *_either("text_2")] = None
    queries: Annotated[str | list[str] | None, *_either("queries")] = Field(None, description="Another name of `text_1`.")
    documents: Annotated[str | list[str] | None, *_either("documents")] = Field(None, description="Another name of `text_2`.")
    model: ModelName = None
    instruction: str | None = Field(None, description="The task, for rerankers that take one.")
    max_tokens_per_doc: Positive | None = Field(None, description="Cut each second text to so many tokens.")
    raw_scores: Flag = Field(None, description="Scores before the sigmoid.")
    truncate: TruncateChoice = Field(None, description="false or `NONE` refuses what is too long with 400; default: cut it.")

    def pairs(self) -> list[tuple[str, str]]:
        """The pairs in order. Raises BadRequest where the lengths do not fit."""
        first_name = "text_1" if self.text_1 is not None else "queries"
        second_name = "text_2" if self.text_2 is not None else "documents"
        first = self.text_1 if self.text_1 is not None else self.queries
        second = self.text_2 if self.text_2 is not None else self.documents
        for value, names in ((first, "text_1 or queries"), (second, "text_2 or documents")):
            if value is None:
                raise BadRequest(f"{names}: this field is required.", param=names.split()[0], code="missing")
        left = [first] if isinstance(first, str) else first or []
        right = [second] if isinstance(second, str) else second or []
        if len(left) == 1:
            left = left * len(right)
        if len(left) != len(right):
            message = f"{second_name}: {len(right)} texts for {len(left)} in {first_name}. Send one for all (1:N) or equally many (N:N)."
            raise BadRequest(message, param=second_name, code="invalid_value")
        return list(zip(left, right, strict=True))


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
