"""docs/ as an index in memory: chunks and their vectors, made by the running service."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx
import numpy as np

from demo import search
from demo.chunks import Chunk, cut, read_docs


@dataclass(frozen=True)
class Index:
    chunks: list[Chunk]
    vectors: search.Vectors  # float32 [chunks, dimensions]
    tokens: int
    seconds: float  # of embedding

    def candidates(self, queries: search.Vectors, limit: int = search.CANDIDATES) -> list[Chunk]:
        return [self.chunks[row] for row in search.retrieve(queries, self.vectors, limit)]


def cut_docs(client: httpx.Client) -> tuple[list[Chunk], int]:
    """The chunks of docs/ and the most tokens one may have: the length that the service cuts at."""
    limit = model_length(client)
    return cut(read_docs(), lambda text: search.count_tokens(client, text), limit), limit


def model_length(client: httpx.Client) -> int:
    """Tokens that the served embedding model reads."""
    answer = client.post("/tokenize", json={"input": ""})
    answer.raise_for_status()
    return int(answer.json()["max_model_len"])


def build(client: httpx.Client, chunks: list[Chunk], progress: Callable[[int], None] = lambda _: None) -> Index:
    """Embed all chunks in requests of BATCH texts, one in flight, as QMD does. `progress` gets the number of chunks just done."""
    began = time.perf_counter()
    vectors, tokens = [], 0
    for first in range(0, len(chunks), search.BATCH):
        texts = [chunk.document for chunk in chunks[first : first + search.BATCH]]
        rows, computed = search.embed(client, texts)
        vectors.append(rows)
        tokens += computed
        progress(len(texts))
    return Index(chunks, np.concatenate(vectors), tokens, time.perf_counter() - began)
