"""The three calls of a QMD search, as the seed's client makes them: expand, embed, rerank."""

from __future__ import annotations

import re
from dataclasses import dataclass

import httpx
import numpy as np
from numpy.typing import NDArray

from demo.chunks import Chunk, query_text

BATCH = 32  # texts per request: what QMD clients send
CANDIDATES = 20
RRF_K = 60  # Cormack, Clarke, Büttcher 2009

SYSTEM = """You help a search engine over personal notes. Rewrite the user's question as search lines.
Write 3 to 6 lines and nothing else. Each line begins with one of these words and a colon:
lex: a few keywords that the note would contain
vec: the question said in other words
hyde: one sentence as it could stand in the note that answers the question"""

# A model of 135 million parameters keeps to the form only when it sees it.
EXAMPLES = (
    (
        "how do I renew a passport",
        "lex: passport renewal application form\nvec: steps to get a new passport when the old one expires\n"
        "hyde: A passport is renewed by filling in a form and taking it to the town hall.",
    ),
    (
        "my tomatoes have brown leaves",
        "lex: tomato leaves brown disease\nvec: why do the leaves of tomatoes turn brown\n"
        "hyde: Brown leaves on tomatoes come from too much water or a fungus.",
    ),
)

_LINE = re.compile(r"^\s*(?:[-*]\s*)?(lex|vec|hyde)\s*:\s*(\S.*)$", re.IGNORECASE)
_WORD = re.compile(r"\w{3,}")
LONGEST_LINE = 400  # characters

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Expansion:
    lines: tuple[tuple[str, str], ...]  # (lex, vec or hyde; text)
    raw: str  # what the model wrote
    tokens: int

    @property
    def texts(self) -> list[str]:
        """What is embedded besides the query."""
        return [text for kind, text in self.lines if kind != "lex"]


@dataclass(frozen=True)
class Ranked:
    chunk: Chunk
    score: float


def parse_expansion(query: str, text: str) -> tuple[tuple[str, str], ...]:
    """The usable lines: of the asked form, not the query again, sharing a word with it (QMD's own test), each once."""
    words = set(_WORD.findall(query.lower()))
    seen = {query.strip().lower()}
    lines = []
    for line in text.splitlines():
        match = _LINE.match(line)
        if not match:
            continue
        content = match[2].strip()
        if content.lower() in seen or len(content) > LONGEST_LINE or not words & set(_WORD.findall(content.lower())):
            continue
        seen.add(content.lower())
        lines.append((match[1].lower(), content))
    return tuple(lines)


def expand(client: httpx.Client, query: str) -> Expansion:
    """Query expansion through the service's /v1/chat/completions. No line is usable: `lines` is empty, and the plain query is searched."""
    messages = [{"role": "system", "content": SYSTEM}]
    for question, lines in EXAMPLES:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": lines}]
    messages.append({"role": "user", "content": query})
    answer = client.post("/v1/chat/completions", json={"model": "default", "messages": messages, "max_tokens": 80, "temperature": 0})
    answer.raise_for_status()
    body = answer.json()
    raw = body["choices"][0]["message"]["content"] or ""
    return Expansion(parse_expansion(query, raw), raw, int((body.get("usage") or {}).get("completion_tokens") or 0))


def embed(client: httpx.Client, texts: list[str]) -> tuple[Vectors, int]:
    """float32 [len(texts), dimensions] unit vectors, and the tokens computed."""
    answer = client.post("/v1/embeddings", json={"model": "default", "input": texts})
    answer.raise_for_status()
    body = answer.json()
    vectors = np.array([item["embedding"] for item in body["data"]], dtype=np.float32)
    return vectors, int(body["usage"]["prompt_tokens"])


def embed_queries(client: httpx.Client, texts: list[str]) -> Vectors:
    return embed(client, [query_text(text) for text in texts])[0]


def retrieve(queries: Vectors, index: Vectors, limit: int = CANDIDATES) -> list[int]:
    """Rows of `index` [n, d], best first, for `queries` [m, d]; the first query is the user's own.

    Several lists by cosine become one by reciprocal rank fusion, in which the user's own query counts twice, as in QMD.
    """
    order = np.argsort(-(queries @ index.T), axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(index.shape[0])[None, :], axis=1)
    weights = np.array([2.0] + [1.0] * (len(queries) - 1))
    fused = (weights[:, None] / (RRF_K + 1 + ranks)).sum(axis=0)
    return [int(row) for row in np.argsort(-fused, kind="stable")[:limit]]


def rerank(client: httpx.Client, query: str, chunks: list[Chunk]) -> list[Ranked]:
    """The chunks, best first, with the reranker's scores."""
    answer = client.post("/v1/rerank", json={"model": "rerank", "query": query, "documents": [chunk.passage for chunk in chunks]})
    answer.raise_for_status()
    return [Ranked(chunks[item["index"]], float(item["relevance_score"])) for item in answer.json()["results"]]


def count_tokens(client: httpx.Client, text: str) -> int:
    """By the service's own /tokenize, special tokens included."""
    answer = client.post("/tokenize", json={"input": text})
    answer.raise_for_status()
    return int(answer.json()["count"])
