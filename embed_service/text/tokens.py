"""Texts to token ids, exactly as transformers tokenises them, on the `tokenizers` library alone."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the pool's threads are the parallelism; read by the library at its first use

from tokenizers import Encoding, Tokenizer

from embed_service.errors import ModelError
from embed_service.models.spec import ModelSpec

if TYPE_CHECKING:
    from embed_service.text.pairs import PairTokenizer

__all__ = ["Side", "TextTokenizer", "Tokenised"]

Int32 = NDArray[np.int32]
Side = Literal["END", "START"]

# No vocabulary has longer tokens that matter, so what lies beyond cannot reach the model; tokenising it would stall a thread.
CHARACTERS_PER_TOKEN = 250
FEWEST_CHARACTERS = 65_536  # tokenised whole in any case: it takes milliseconds


@dataclass(frozen=True, slots=True, eq=False)
class Tokenised:
    """`ids` int32 [length], special tokens included and not longer than the limit; `full` is the length before the cut (at least, for huge
    texts); `second` is where the second segment (token type 1) begins, or None; `prefix` is how many of its first tokens it has in common
    with the others of its query, so that they are computed once: less than `len(ids)`, 0 where nothing is shared."""

    ids: Int32
    full: int
    second: int | None = None
    prefix: int = 0

    @property
    def cut(self) -> bool:
        return self.full > len(self.ids)


@dataclass(frozen=True, eq=False)
class SpecialTokens:
    """What the tokenizer puts before, between and after: `start` A `end`, or `pair_start` A `middle` B `pair_end`; int32 arrays."""

    start: Int32
    end: Int32
    pair_start: Int32
    middle: Int32
    pair_end: Int32

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Self:
        """Learned from one text and one pair, as the post-processor treats them."""
        one = tokenizer.encode("a")
        two = tokenizer.encode("a", "b")
        start, end, _, _ = _spans(one.special_tokens_mask, one.sequence_ids)
        pair_start, middle, second, pair_end = _spans(two.special_tokens_mask, two.sequence_ids)
        one_ids, two_ids = _int32(one.ids), _int32(two.ids)
        return cls(one_ids[:start], one_ids[end:], two_ids[:pair_start], two_ids[middle:second], two_ids[pair_end:])


class TextTokenizer:
    """A model's tokenizer. Every method may run in any thread; none touches the event loop."""

    def __init__(self, tokenizer: Tokenizer, spec: ModelSpec) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.spec = spec
        self.special = SpecialTokens.of(tokenizer)

    @classmethod
    def load(cls, spec: ModelSpec) -> Self:
        """From tokenizer.json in the model's folder. Raises ModelError."""
        file = Path(spec.path) / "tokenizer.json"
        if not file.is_file():
            message = f"{spec.id} has no tokenizer.json. Save it once with transformers' fast tokenizer, or choose another model."
            raise ModelError("bad_files", message)
        try:
            tokenizer = cls(_read(file, spec.vocabulary), spec)
        except Exception as error:  # the library raises bare Exception
            raise ModelError("bad_files", f"The tokenizer.json of {spec.id} cannot be read ({error}). Download the model again.") from error
        if spec.kind in ("yes_no", "classifier"):
            _ = tokenizer.pairs
        return tokenizer

    def body(self, texts: Sequence[str]) -> list[Int32]:
        """The ids of each text without special tokens, whole."""
        return [_int32(encoding.ids) for encoding in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode(self, text: str) -> Encoding:
        """One text without special tokens, with the offsets of its tokens."""
        return self._tokenizer.encode(text, add_special_tokens=False)

    def bounded_body(self, texts: Sequence[str], max_tokens: int, side: Side = "END") -> list[tuple[Int32, int]]:
        """(ids, full length) of each text; a text so long that its end cannot matter is cut by characters first."""
        limit = max(CHARACTERS_PER_TOKEN * max_tokens, FEWEST_CHARACTERS)
        long = [len(text) > limit for text in texts]
        bodies = self.body([t[:limit] if side == "END" else t[-limit:] for t in texts] if any(long) else texts)
        return [(ids, max(len(ids), max_tokens + 1) if cut else len(ids)) for ids, cut in zip(bodies, long, strict=True)]

    def texts(self, texts: Sequence[str], *, max_tokens: int, side: Side = "END") -> list[Tokenised]:
        """Single texts for an embedding, cut to `max_tokens` with their special tokens kept."""
        extra = len(self.special.start) + len(self.special.end)
        room = max(max_tokens - extra, 0)
        tokenised = []
        for ids, full in self.bounded_body(texts, max_tokens, side):
            kept = ids[:room] if side == "END" else ids[len(ids) - min(room, len(ids)) :]
            tokenised.append(Tokenised(np.concatenate([self.special.start, kept, self.special.end]), full + extra))
        return tokenised

    def given(self, ids: Sequence[int], *, max_tokens: int, side: Side = "END") -> Tokenised:
        """Ids that a client computed, taken as they are; a cut keeps the special tokens that they begin and end with."""
        whole = _int32(ids)
        if len(whole) <= max_tokens:
            return Tokenised(whole, len(whole))
        start, end = self.special.start, self.special.end
        head = start if len(start) and np.array_equal(whole[: len(start)], start) else whole[:0]
        tail = end if len(end) and np.array_equal(whole[len(whole) - len(end) :], end) else whole[:0]
        inner = whole[len(head) : len(whole) - len(tail)]
        room = max(max_tokens - len(head) - len(tail), 0)
        kept = inner[:room] if side == "END" else inner[len(inner) - min(room, len(inner)) :]
        return Tokenised(np.concatenate([head, kept, tail]), len(whole))

    def tokenize(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """All ids of `text`, without any limit."""
        return list(self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids)

    def detokenize(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def splitting(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The normalizer and the pre-tokenizer as tokenizer.json describes them; empty where there is none."""
        return _described(self._tokenizer.normalizer), _described(self._tokenizer.pre_tokenizer)

    @cached_property
    def pairs(self) -> PairTokenizer:
        """Queries and documents of a reranker. Raises ModelError when its template fills the model's length."""
        from embed_service.text.pairs import PairTokenizer

        return PairTokenizer(self)


def _read(file: Path, vocabulary: int) -> Tokenizer:
    """Without the added tokens that the model has no row for: their text is tokenised like any other."""
    tokenizer = Tokenizer.from_file(str(file))
    if max(tokenizer.get_added_tokens_decoder(), default=0) < vocabulary:
        return tokenizer
    content = json.loads(file.read_bytes())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < vocabulary]
    return Tokenizer.from_str(json.dumps(content))


def _described(part: Any) -> dict[str, Any]:
    return dict(json.loads(part.__getstate__())) if part is not None else {}


def _int32(ids: Sequence[int]) -> Int32:
    return np.array(ids, np.int32)


def _spans(special: list[int], sequence: list[int | None]) -> tuple[int, int, int, int]:
    """(start of A, end of A, start of B, end of B) in an encoding; B is empty at A's end for a single text."""
    own = [None if mask else which for mask, which in zip(special, sequence, strict=True)]
    first = [i for i, which in enumerate(own) if which == 0]
    second = [i for i, which in enumerate(own) if which == 1] or [first[-1] + 1]
    b_end = second[-1] + 1 if 1 in own else second[-1]
    return first[0], first[-1] + 1, second[0], b_end
