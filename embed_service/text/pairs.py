"""A query and its documents as the reranker takes them.

Two forms. A cross-encoder (`classifier`) takes a pair with the tokenizer's own separators. A language model that judges (`yes_no`, or a
classifier made from one) takes `template_prefix` body `template_suffix`, the body being one text (model card of Qwen3-Reranker):

    <Instruct>: {instruction}\\n<Query>: {query}\\n<Document>: {document}

A document that is too long is cut first, but keeps a few tokens; then the query; the separators and the suffix never are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from embed_service.errors import BadRequest, ModelError
from embed_service.text.tokens import CHARACTERS_PER_TOKEN, FEWEST_CHARACTERS, Int32, TextTokenizer, Tokenised

__all__ = ["Head", "PairTokenizer", "common_prefix"]

MIN_DOCUMENT_TOKENS = 64  # what a query that is too long leaves to each document
MIN_BODY_TOKENS = 32

# Pre-tokenizers that never join "<Document>:" with the space after it, so the text before it can be tokenised once for all documents.
_QWEN_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True, eq=False)
class Head:
    """What all documents of a request share: for a template the text up to "<Document>:" and its ids int32, else the query's ids."""

    ids: Int32
    text: str = ""
    cut: bool = False


class PairTokenizer:
    """Raises ModelError when the model's length leaves no room beside its template."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        spec = tokenizer.spec
        self.tokenizer = tokenizer
        self.spec = spec
        self.templated = spec.kind == "yes_no" or bool(spec.template_prefix)
        if self.templated:
            self._before, self._after = tokenizer.body([spec.template_prefix, spec.template_suffix])
            fixed = len(self._before) + len(self._after)
        else:
            fixed = len(tokenizer.special.pair_start) + len(tokenizer.special.middle) + len(tokenizer.special.pair_end)
        self._room = spec.max_tokens - fixed
        if self._room < (MIN_BODY_TOKENS if self.templated else 2):
            raise ModelError(
                "unsupported",
                f"{spec.id} computes {spec.max_tokens} tokens and its template takes {fixed} of them. "
                f"Set MAX_INPUT_TOKENS to {fixed + 4 * MIN_DOCUMENT_TOKENS} or more.",
            )
        self._min_document = min(MIN_DOCUMENT_TOKENS, self._room // 4)
        self._once = self.templated and _splits_before_space(*tokenizer.splitting())

    def head(self, query: str, instruction: str | None = None) -> Head:
        """What precedes every document. A cross-encoder without a template ignores an instruction.

        Raises BadRequest for an instruction that fills the model's length.
        """
        if not self.templated:
            ((ids, full),) = self.tokenizer.bounded_body([query], self.spec.max_tokens)
            return Head(ids, cut=full > len(ids))
        room = self._room - self._min_document
        instruction = instruction or self.spec.template_instruction
        limit = max(CHARACTERS_PER_TOKEN * self.spec.max_tokens, FEWEST_CHARACTERS)
        instruction = instruction[:limit]
        head = self._head(instruction, query[:limit])
        if len(head.ids) <= room and len(query) <= limit:
            return head
        tokens = self.tokenizer.encode(query[:limit])
        kept = min(room, len(tokens.ids))
        while True:
            head = self._head(instruction, query[: tokens.offsets[kept - 1][1]] if kept else "", cut=True)
            excess = len(head.ids) - room
            if excess <= 0:
                return head
            if kept == 0:
                message = f"instruction: it fills this model's maximum context length of {self.spec.max_tokens} tokens. Shorten it."
                raise BadRequest(message, param="instruction")
            kept = max(0, kept - excess)

    def _head(self, instruction: str, query: str, cut: bool = False) -> Head:
        text = f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>:"
        return Head(self.tokenizer.body([text])[0], text, cut)

    def documents(self, head: Head, documents: Sequence[str], max_tokens_per_doc: int | None = None) -> list[Tokenised]:
        """The whole sequence of each document behind `head`."""
        if self.templated:
            return self._judged(head, documents, max_tokens_per_doc)
        return self._paired(head, documents, max_tokens_per_doc)

    def shared(self, sequences: list[Tokenised]) -> list[Tokenised]:
        """All sequences of one query, each told how long a prefix they have in common.

        A cross-encoder without a template shares nothing: its tokens see what follows them.
        """
        prefix = common_prefix([s.ids for s in sequences]) if self.templated else 0
        return [replace(s, prefix=prefix) for s in sequences] if prefix else sequences

    def _judged(self, head: Head, documents: Sequence[str], most: int | None) -> list[Tokenised]:
        room = self._room - len(head.ids)
        room = min(room, most) if most else room
        if self._once:
            bodies = [(head.ids, ids, full) for ids, full in self.tokenizer.bounded_body([f" {d}" for d in documents], room)]
        else:
            limit, shared = max(CHARACTERS_PER_TOKEN * room, FEWEST_CHARACTERS), len(head.ids)
            whole = self.tokenizer.body([f"{head.text} {d[:limit]}" for d in documents])
            bodies = [
                (ids[:shared], ids[shared:], room + 1 if len(d) > limit else len(ids) - shared)
                for ids, d in zip(whole, documents, strict=True)
            ]
        return [
            self._sequence([self._before, first, second[:room], self._after], full > room or head.cut, full - room)
            for first, second, full in bodies
        ]

    def _paired(self, head: Head, documents: Sequence[str], most: int | None) -> list[Tokenised]:
        special = self.tokenizer.special
        tokenised = []
        for ids, full in self.tokenizer.bounded_body(documents, min(most or self._room, self._room)):
            document = ids[:most] if most else ids
            kept = max(self._room - len(head.ids), min(len(document), self._min_document))
            second = document[:kept]
            first = head.ids[: self._room - len(second)]
            over = (full - len(second)) + (len(head.ids) - len(first))
            start = len(special.pair_start) + len(first) + len(special.middle)
            tokenised.append(
                self._sequence(
                    [special.pair_start, first, special.middle, second, special.pair_end],
                    over > 0 or head.cut,
                    over,
                    start if self.spec.segments else None,
                )
            )
        return tokenised

    @staticmethod
    def _sequence(parts: list[Int32], cut: bool, over: int, second: int | None = None) -> Tokenised:
        ids = np.concatenate(parts)
        return Tokenised(ids, len(ids) + (max(over, 1) if cut else 0), second)


def common_prefix(sequences: Sequence[Int32]) -> int:
    """Length of the longest common prefix of int32 arrays that leaves each a token of its own; 0 unless two of them differ.

    Of ids and not of texts: a document's first token may have joined the space before it, or begin like all others.
    """
    if not sequences:
        return 0
    first = sequences[0]
    if all(np.array_equal(first, other) for other in sequences):
        return 0
    length = min(len(s) for s in sequences) - 1
    for other in sequences:
        differs = first[:length] != other[:length]
        if differs.any():
            length = int(differs.argmax())
    return max(length, 0)


def _splits_before_space(normalizer: dict[str, Any], pre_tokenizer: dict[str, Any]) -> bool:
    """Whether a new piece always begins at the space behind punctuation: Qwen's split, or GPT-2's (ByteLevel) with or without Digits."""
    if normalizer.get("type", "NFC") != "NFC":
        return False
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    kinds = [step.get("type") for step in steps]
    last = steps[-1]
    if kinds == ["Split", "ByteLevel"]:
        return bool(steps[0].get("pattern", {}).get("Regex") == _QWEN_SPLIT and steps[0].get("behavior") == "Isolated")
    if kinds in (["ByteLevel"], ["Digits", "ByteLevel"]):
        return bool(last.get("use_regex", True))
    return False
