"""The requests of a QMD client: what it sends when it indexes and when it searches, and how large that is.

The sizes are those of QMD 2.8 and of its remote client (chronologos/qmd): texts to embed are cut at 2,700 characters, candidates of a
rerank at 3,600 (about 900 tokens); most chunks end at a paragraph shortly before that, the last one of a note anywhere.
"""

from __future__ import annotations

import random
import re
from dataclasses import asdict, dataclass
from typing import Any, Literal

from qmdctl.bench.texts import Notes
from qmdctl.laptop.requests import QMD

Kind = Literal["expansion", "embedding", "rerank", "indexing"]
Expansion = Literal["chat", "completion"]
LINKS: tuple[Kind, ...] = ("expansion", "embedding", "rerank")
KINDS: tuple[Kind, ...] = (*LINKS, "indexing")

WHOLE_SHARE = 0.75  # of the chunks end shortly before the limit
EMBEDDED = (300, 2_100, 2_700)  # characters: shortest, where a whole chunk begins, the limit
RERANKED = (600, 2_700, 3_600)
MOST_VARIANTS = 6  # beside the query itself
SYSTEM = (
    "You expand search queries for a search engine over Markdown notes. Write four to eight lines and nothing else. Each line begins with "
    "lex: (keywords), vec: (a question in other words) or hyde: (a sentence that could stand in the answer)."
)
LINE = re.compile(r"^\s*(lex|vec|hyde)\s*:\s*(.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Workload:
    """Chunks per embedding request and per rerank, and how queries are expanded; None: no text is generated."""

    batch: int = 32
    candidates: int = 40
    expansion: Expansion | None = "chat"
    max_tokens: int = 400

    def payload(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Request:
    """One request. `texts` are vectors or scores that its answer must have; 0 for generated text."""

    kind: Kind
    path: str
    body: dict[str, Any]
    texts: int = 0


class Requests:
    """Makes each request once: every text has a number of its own."""

    def __init__(self, notes: Notes, workload: Workload, generate_model: str = "") -> None:
        self.notes, self.workload, self.generate_model = notes, workload, generate_model
        self._chunks = self._queries = 0

    def indexing(self, batch: int | None = None) -> Request:
        size = batch or self.workload.batch
        texts = ["title: {} | text: {}".format(*self._chunk(EMBEDDED)) for _ in range(size)]
        return Request("indexing", "/v1/embeddings", {"model": QMD["embedding"]["model"], "input": texts}, size)

    def query(self) -> str:
        self._queries += 1
        return self.notes.query(self._queries)

    def expansion(self, query: str) -> Request:
        """As the client of 2026 asks for it (chat), or the one before (completion)."""
        model = {"model": self.generate_model} if self.generate_model else {}
        sampling = {**model, "max_tokens": self.workload.max_tokens, "temperature": 0.7, "top_p": 0.8, "top_k": 20}
        if self.workload.expansion == "completion":
            return Request("expansion", "/v1/completions", {"prompt": f"/no_think Expand this search query: {query}", **sampling})
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"/no_think {query}"}]
        return Request("expansion", "/v1/chat/completions", {"messages": messages, **sampling})

    def embedding(self, query: str, expanded: str) -> Request:
        texts = [f"task: search result | query: {text}" for text in [query, *variants(query, expanded)]]
        return Request("embedding", "/v1/embeddings", {"model": QMD["embedding"]["model"], "input": texts}, len(texts))

    def rerank(self, query: str, candidates: int | None = None) -> Request:
        size = candidates or self.workload.candidates
        documents = [self._chunk(RERANKED)[1] for _ in range(size)]
        return Request("rerank", "/v1/rerank", {"model": QMD["rerank"]["model"], "query": query, "documents": documents}, size)

    def _chunk(self, sizes: tuple[int, int, int]) -> tuple[str, str]:
        self._chunks += 1
        source = random.Random(f"{self.notes.seed} size {self._chunks}")
        least, whole, most = sizes
        characters = source.randrange(whole, most) if source.random() < WHOLE_SHARE else source.randrange(least, whole)
        return self.notes.chunk(self._chunks, characters)


def variants(query: str, expanded: str) -> list[str]:
    """The texts that the client embeds beside the query: the vec and hyde lines that have a word of it, else its own two."""
    words = set(re.findall(r"[a-z0-9]+", query.lower()))
    lines = [text.strip() for kind, text in LINE.findall(expanded) if kind != "lex"]
    fitting = [text for text in lines if words & set(re.findall(r"[a-z0-9]+", text.lower()))]
    return fitting[:MOST_VARIANTS] or [query, f"Information about {query}"]
