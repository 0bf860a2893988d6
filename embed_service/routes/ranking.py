"""Raw scores of queries and documents, whatever kind of reranker is served."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from embed_service.errors import BadRequest
from embed_service.models.spec import ModelSpec
from embed_service.routes.compute import Computation
from embed_service.text.prompts import Prompter
from embed_service.text.tokens import TextTokenizer, Tokenised

__all__ = ["Ranking", "rank"]

Float64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Ranking:
    """`raw` float64 [n]: logits, or cosines where an embedding model reranks; `probabilities` float64 [n] in [0, 1]."""

    spec: ModelSpec
    raw: Float64

    @property
    def probabilities(self) -> Float64:
        if self.spec.kind == "cosine":
            return np.clip(self.raw, 0.0, 1.0)
        # Written so that neither branch overflows.
        smaller = np.exp(-np.abs(self.raw))
        return np.where(self.raw >= 0, 1 / (1 + smaller), smaller / (1 + smaller))

    def scores(self, raw: bool | None) -> Float64:
        return self.raw if raw else self.probabilities


async def rank(
    computation: Computation,
    pairs: Sequence[tuple[str, str]],
    *,
    instruction: str | None = None,
    max_tokens_per_doc: int | None = None,
    refuse_cut: bool = False,
    param: str = "documents",
    query_param: str = "query",
) -> Ranking:
    """The score of each (query, document), in order. A query that several documents share is tokenised, and by cosine computed, once.

    With `refuse_cut` a text that would be cut is a BadRequest, which calls it by `param` or `query_param`.
    """
    served = await computation.service.wait_ready("rerank")
    spec = served.spec
    groups: dict[str, list[int]] = {}
    for index, (query, _) in enumerate(pairs):
        groups.setdefault(query, []).append(index)
    if spec.kind == "cosine":
        return Ranking(spec, await _cosines(computation, pairs, groups, instruction, max_tokens_per_doc, refuse_cut, param, query_param))
    if instruction and not served.tokenizer.pairs.templated:
        computation.dropped.append("instruction")
    refused = query_param if refuse_cut else None
    tokenising = _judged(computation, served.tokenizer, pairs, groups, instruction, max_tokens_per_doc, refused)
    sequences = await computation.tokenised("rerank", tokenising)
    if refuse_cut:
        computation.refuse_cut(sequences, spec, param)
    computation.count("rerank", sequences)
    rows = await computation.rows(served, sequences, "interactive")
    return Ranking(spec, rows[:, 0].astype(np.float64))


async def _judged(
    computation: Computation,
    tokenizer: TextTokenizer,
    pairs: Sequence[tuple[str, str]],
    groups: dict[str, list[int]],
    instruction: str | None,
    most: int | None,
    refused: str | None,
) -> list[Tokenised]:
    pool = computation.state.pool
    found: dict[int, Tokenised] = {}
    for query, indices in groups.items():
        head = await pool.run(partial(tokenizer.pairs.head, query, instruction))
        if refused and head.cut:
            raise _too_long(refused, tokenizer.spec)
        sequences = await pool.map(partial(tokenizer.pairs.documents, head, max_tokens_per_doc=most), [pairs[i][1] for i in indices])
        sequences = await pool.run(partial(tokenizer.pairs.shared, sequences))
        found.update(zip(indices, sequences, strict=True))
    return [found[index] for index in range(len(pairs))]


async def _cosines(
    computation: Computation,
    pairs: Sequence[tuple[str, str]],
    groups: dict[str, list[int]],
    instruction: str | None,
    most: int | None,
    refuse_cut: bool,
    param: str,
    query_param: str,
) -> Float64:
    served = await computation.service.wait_ready("embed")
    tokenizer = served.tokenizer
    prompter = Prompter(served.spec, "raw")
    if instruction and not served.spec.instruct:
        computation.dropped.append("instruction")
    limit = served.spec.max_tokens
    special = len(tokenizer.special.start) + len(tokenizer.special.end)
    of_document = min(limit, most + special) if most else limit
    pool = computation.state.pool
    queries = [prompter.query(query, instruction) for query in groups]
    documents = [prompter.document(document) for _, document in pairs]

    async def tokenise() -> list[Tokenised]:
        first = await pool.map(partial(tokenizer.texts, max_tokens=limit), queries)
        second = await pool.map(partial(tokenizer.texts, max_tokens=of_document), documents)
        return [*first, *second]

    sequences = await computation.tokenised("rerank", tokenise())
    if refuse_cut:
        if any(sequence.cut for sequence in sequences[: len(queries)]):
            raise _too_long(query_param, served.spec)
        computation.refuse_cut(sequences[len(queries) :], served.spec, param)
    computation.count("rerank", sequences)
    rows = (await computation.rows(served, sequences, "interactive")).astype(np.float64)
    position = {query: index for index, query in enumerate(groups)}
    of_query = rows[[position[query] for query, _ in pairs]]
    cosines: Float64 = np.einsum("nd,nd->n", of_query, rows[len(queries) :])
    return cosines


def _too_long(query_param: str, spec: ModelSpec) -> BadRequest:
    message = f"{query_param}: it leaves no room within this model's maximum context length of {spec.max_tokens} tokens. Shorten it."
    return BadRequest(message, param=query_param, code="context_length_exceeded")
