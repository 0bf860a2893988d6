"""The figures that are the aim, and what a run says about them. Nothing depends on whether they hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.reranking import CROSS_ENCODER_TOKENS, QWEN3, RERANK, XLM_R, row_name
from benchmarks.responses import ANSWER, BYTES_BASE64, BYTES_JSON, LOOP
from benchmarks.results import FORWARD, INFINITY, LIBRARY, OURS, VLLM, Results
from benchmarks.scenarios import BULK_SHARE, EMBEDDINGS, MEMORY, MEMORY_GROWN, QUERY, WHILE_BUSY


@dataclass(frozen=True)
class Aim:
    """`figure` bounds our median over that of `peer` in one row, or our median itself where there is no peer.

    `wish`: a better figure still, shown beside it.
    """

    work: str
    against: str
    bound: Literal["≥", "≤"]
    figure: float
    section: str
    row: str
    peer: str | None = None
    unit: str = ""
    wish: str = ""

    def measured(self, results: Results) -> float | None:
        """None where it was not measured."""
        row = results.find(self.section, self.row)
        if row is None:
            return None
        return row.ratio(self.peer) if self.peer else row.median(OURS)

    def holds(self, results: Results) -> bool | None:
        value = self.measured(results)
        return None if value is None else value >= self.figure if self.bound == "≥" else value <= self.figure


def aims(units: Sequence[str], documents: int, memory: tuple[int, int]) -> list[Aim]:
    """`units` of the processor: with AMX more is wanted. `documents` in a rerank; `memory`: texts before and after."""
    minilm, busy = "MiniLM over HTTP, {}", f"one short query {WHILE_BUSY}"
    amx = "amx_bf16" in units
    speed = [
        Aim(minilm.format("8 × 32") + ": texts/s", VLLM, "≥", 1.2 if amx else 0.8, EMBEDDINGS, "8 × 32", VLLM, wish="" if amx else "1.0")
    ]
    speed += [
        Aim(minilm.format(cell) + ": texts/s", INFINITY, "≥", 1.6, EMBEDDINGS, cell, INFINITY, wish="2")
        for cell in ("8 × 32", "1 × 1", "8 × 1", "1 × 32")
    ]
    speed += [Aim(minilm.format("8 × 32") + ": texts/s", FORWARD, "≥", 0.9, EMBEDDINGS, "8 × 32", FORWARD)]
    latency = [
        Aim("one short query, idle: p50", VLLM, "≤", 0.9, QUERY, "idle, p50", VLLM),
        Aim(f"{busy}: p50", f"{VLLM}, the query urgent", "≤", 1.0, QUERY, f"{WHILE_BUSY}, p50", VLLM),
        Aim(f"{busy}: bulk rate", "our bulk rate alone", "≥", 0.9, QUERY, BULK_SHARE),
    ]
    rerank = [
        Aim(f"rerank {documents} × ~{tokens} tokens, {what}: time", peer, "≤", figure, RERANK, row_name(what, tokens), peer)
        for what, tokens, peer, figure in (
            (XLM_R, CROSS_ENCODER_TOKENS, VLLM, 1.0),
            (XLM_R, CROSS_ENCODER_TOKENS, LIBRARY, 0.6),
            (QWEN3, 900, VLLM, 0.7),
            (QWEN3, 900, LIBRARY, 1.0),
            (QWEN3, 180, LIBRARY, 0.33),
            (QWEN3, 180, VLLM, 0.8),
        )
    ]
    answer = [
        Aim("32 × 2,560 embeddings as JSON: size", "", "≤", 1_050, ANSWER, BYTES_JSON, unit="kB"),
        Aim("32 × 2,560 embeddings as base64: size", "", "≤", 437, ANSWER, BYTES_BASE64, unit="kB"),
        Aim("32 × 2,560 embeddings: on the event loop", "", "≤", 5, ANSWER, LOOP, unit="ms"),
    ]
    first, last = memory
    grown = Aim(f"memory after {last:,} chunks", f"after the first {first}", "≤", 1.05, MEMORY, MEMORY_GROWN)
    return [*speed, *latency, *rerank, *answer, grown]


def lines(wanted: Sequence[Aim], results: Results) -> list[tuple[str, str, str, str, str]]:
    """work, against, aim, measured, holds? of each."""
    words = {True: "yes", False: "no", None: "not measured"}
    made = []
    for aim in wanted:
        value = aim.measured(results)
        wish = f" ({aim.wish} if possible)" if aim.wish else ""
        bound = f"{aim.bound} {aim.figure:,g} {aim.unit}".rstrip() + wish
        measured = "" if value is None else f"{value:,.{0 if value >= 100 else 2}f} {aim.unit}".rstrip()
        made.append((aim.work, aim.against, bound, measured, words[aim.holds(results)]))
    return made
