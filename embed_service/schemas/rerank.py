"""POST /v1/rerank, with Cohere's, Jina's and TEI's shapes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, PlainValidator, WithJsonSchema

from embed_service.errors import BadRequest
from embed_service.schemas.embeddings import Usage
from embed_service.schemas.fields import Count, Flag, ModelName, Positive, Request, TruncateChoice, text_list

__all__ = ["MAX_DOCUMENTS", "RerankRequest", "RerankResponse", "TeiRank"]

MAX_DOCUMENTS = 1000

DOCUMENTS = {
    "anyOf": [
        {
            "type": "array",
            "maxItems": MAX_DOCUMENTS,
            "items": {
                "anyOf": [
                    {"type": "string"},
                    {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
                ]
            },
        },
        {"type": "null"},
    ]
}


def _documents(value: Any) -> list[str] | None:
    return None if value is None else text_list(value, "documents", MAX_DOCUMENTS, objects=True)


def _texts(value: Any) -> list[str] | None:
    return None if value is None else text_list(value, "texts", MAX_DOCUMENTS)


class RerankRequest(Request):
    """A body with `texts` instead of `documents` is TEI's and gets TEI's bare array."""

    query: str
    documents: Annotated[list[str] | None, PlainValidator(_documents), WithJsonSchema(DOCUMENTS)] = Field(
        None, description="Up to 1,000 strings or objects with a `text`."
    )
    texts: Annotated[
        list[str] | None,
        PlainValidator(_texts),
        WithJsonSchema({"anyOf": [{"type": "array", "maxItems": MAX_DOCUMENTS, "items": {"type": "string"}}, {"type": "null"}]}),
    ] = Field(None, description="TEI's name for `documents`.")
    model: ModelName = None
    top_n: Count | None = Field(None, description="Answer only the best so many; absent, null or 0: all.")
    top_k: Count | None = Field(None, description="Another name of `top_n`.")
    return_documents: Flag = Field(None, description="Repeat each document in its result.")
    return_text: Flag = Field(None, description="TEI's name for `return_documents`.")
    instruction: str | None = Field(None, description="The task; rerankers without instructions ignore it.")
    max_tokens_per_doc: Positive | None = Field(None, description="Cut each document to so many tokens.")
    raw_scores: Flag = Field(None, description="Scores before the sigmoid (logits, or cosines where an embedding model reranks).")
    truncate: TruncateChoice = Field(None, description="false or `NONE` refuses documents that are too long with 400; default: cut them.")

    def model_post_init(self, context: Any) -> None:
        if self.documents is None and self.texts is None:
            raise BadRequest("documents: this field is required (or `texts`, for TEI's shape).", param="documents", code="missing")

    @property
    def candidates(self) -> list[str]:
        return self.texts if self.texts is not None else self.documents or []

    @property
    def most(self) -> int:
        """How many results to answer."""
        return (self.top_n if self.top_n is not None else self.top_k) or len(self.candidates)


class Document(BaseModel):
    text: str


class RankedDocument(BaseModel):
    index: int = Field(description="Position in `documents`.")
    relevance_score: float = Field(description="Probability in [0, 1]; the raw score with `raw_scores`.")
    score: float = Field(description="The same number, for clients that read this name.")
    document: Document | None = None


class RerankResponse(BaseModel):
    id: str
    object: Literal["rerank"]
    model: str
    results: list[RankedDocument]
    usage: Usage
    meta: dict[str, Any]


class TeiRank(BaseModel):
    index: int
    score: float
    text: str | None = None
