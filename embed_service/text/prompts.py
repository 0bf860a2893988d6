"""Which prompt a text gets: the client's wish, else the prompt policy.

QMD's clients send the prefixes of EmbeddingGemma whatever model is served. Under `native` exactly those two shapes are rewritten to the
served model's own form; under `raw` they are left. Nothing else is ever rewritten, so a text that already has its model's form keeps it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from embed_service.errors import BadRequest
from embed_service.models.spec import ModelSpec

__all__ = ["INPUT_TYPES", "Prompter", "TextType"]

TextType = Literal["query", "document", "classification", "clustering"]
Policy = Literal["native", "raw"]

# The spellings of OpenAI-like services, Cohere, Voyage, Jina and Google, in lower case.
INPUT_TYPES: dict[str, TextType] = {
    "query": "query",
    "search_query": "query",
    "retrieval.query": "query",
    "retrieval_query": "query",
    "question": "query",
    "document": "document",
    "search_document": "document",
    "retrieval.passage": "document",
    "retrieval_document": "document",
    "passage": "document",
    "classification": "classification",
    "clustering": "clustering",
}

_GEMMA_DOCUMENT = re.compile(r"title: ([^\n]*?) \| text: (.*)\Z", re.DOTALL)
_GEMMA_QUERY = re.compile(r"task: search result \| query: (.*)\Z", re.DOTALL)
_GEMMA_DOCUMENT_PROMPT = "title: none | text: "


@dataclass(frozen=True)
class Prompter:
    """Texts as the embedding model takes them. `spec.prompts` holds "query", "document" and the repository's own names."""

    spec: ModelSpec
    policy: Policy

    def query(self, text: str, instruction: str | None = None) -> str:
        """`text` as a query: "Instruct: {instruction}\\nQuery:{text}" (Qwen3-Embedding's model card) or behind the model's query prompt."""
        if instruction and self.spec.instruct:
            return f"Instruct: {instruction}\nQuery:{text}"
        return self.spec.prompts.get("query", "") + text

    def document(self, text: str, title: str | None = None) -> str:
        """`text` as a document: behind the model's document prompt, its title on the line before."""
        prompt = self.spec.prompts.get("document", "")
        if prompt == _GEMMA_DOCUMENT_PROMPT:
            return f"title: {title or 'none'} | text: {text}"
        return prompt + (f"{title}\n{text}" if title else text)

    def apply(
        self, texts: list[str], *, input_type: str | None = None, prompt_name: str | None = None, instruction: str | None = None
    ) -> list[str]:
        """The texts with their prompts. `prompt_name` goes before `input_type`; an `instruction` concerns queries alone.

        A model that was not trained with instructions ignores one. Raises BadRequest for an unknown name.
        """
        instruction = instruction if self.spec.instruct else None
        if prompt_name is not None:
            if prompt_name not in self.spec.prompts:
                names = ", ".join(repr(name) for name in self.spec.prompts) or "none"
                message = f"prompt_name: {prompt_name[:80]!r} is not a prompt of {self.spec.id}. Prompts it has: {names}."
                raise BadRequest(message, param="prompt_name")
            if prompt_name not in ("query", "document"):
                return [self.spec.prompts[prompt_name] + text for text in texts]
            kind = _text_type(prompt_name)
        else:
            kind = _text_type(input_type)
        if kind is None and instruction:
            kind = "query"
        return [self._one(text, kind, instruction) for text in texts]

    def _one(self, text: str, kind: TextType | None, instruction: str | None) -> str:
        if kind in (None, "query") and (match := self._shape(_GEMMA_QUERY, text)):
            return self.query(match[1], instruction)
        if kind in (None, "document") and (match := self._shape(_GEMMA_DOCUMENT, text)):
            title = match[1].strip()
            return self.document(match[2], None if title in ("", "none") else title)
        if kind == "query":
            return self.query(text, instruction)
        if kind == "document":
            return self.document(text)
        return self.spec.prompts.get(kind, "") + text if kind else text

    def _shape(self, pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
        return pattern.match(text) if self.policy == "native" else None


def _text_type(input_type: str | None) -> TextType | None:
    if input_type is None:
        return None
    try:
        return INPUT_TYPES[input_type.lower()]
    except KeyError:
        message = f"input_type: {input_type[:80]!r} is unknown. Use 'query' or 'document' (also known: {', '.join(INPUT_TYPES)})."
        raise BadRequest(message, param="input_type") from None
