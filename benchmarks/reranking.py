"""Rerank: one query with its documents, contestant after contestant within each round."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from benchmarks import load, models
from benchmarks.scenarios import Work, compared
from benchmarks.servers import Contestant, Infinity, Ours, Server, Vllm
from benchmarks.team import Team, started
from benchmarks.texts import QUERIES, documents
from benchmarks.workers import SentenceTransformers

RERANK = "Rerank"
CROSS_ENCODER_TOKENS = 400
AGREE_DOCUMENTS = 8
LARGEST_DIFFERENCE = {"float32": 0.001, "bfloat16": 0.05}  # of a score between 0 and 1
# vLLM's own recipe for a Qwen3 reranker as Qwen publishes it.
JUDGE_OVERRIDES = (
    '{"architectures":["Qwen3ForSequenceClassification"],"classifier_from_token":["no","yes"],"is_original_qwen3_reranker":true}'
)


@dataclass
class Course:
    """One model, its documents' lengths in tokens, and who takes part."""

    what: str
    model: Path
    tokens: tuple[int, ...]
    library: SentenceTransformers
    members: list[Contestant]


def row_name(what: str, tokens: int) -> str:
    return f"{what}, ~{tokens} tokens a document"


XLM_R, QWEN3 = "XLM-R base's shape", f"Qwen3-0.6B's shape, {models.QWEN_LAYERS} layers"


def rerank(work: Work, parts: Collection[str]) -> None:
    """`parts`: "rerank-xlmr", "rerank-qwen", or both."""
    courses = [make(work) for name, make in (("rerank-xlmr", _cross_encoder), ("rerank-qwen", _judge)) if name in parts]
    everyone = [member for course in courses for member in course.members]
    with started(everyone, "rerank", work.results, work.say) as team:
        for course in courses:
            _agree(work, team, course)
        for number, course in enumerate(courses):
            for tokens in course.tokens:
                _measure(work, team, course, tokens, share=0.4 if number < len(courses) - 1 else 0.35 if tokens < max(course.tokens) else 1)


def _cross_encoder(work: Work) -> Course:
    model = models.cross_encoder()
    library = SentenceTransformers(work.dtype, rerank=model)
    members: list[Contestant] = [Ours(models.minilm(), model, work.dtype), library]
    members += [Vllm("rerank", model, work.dtype)] if Vllm.installed() else []
    members += [Infinity(work.dtype, rerank=model)] if Infinity.installed() else []
    return Course(XLM_R, model, (CROSS_ENCODER_TOKENS,), library, members)


def _judge(work: Work) -> Course:
    """infinity takes no language model for a reranker."""
    model = models.judge()
    library = SentenceTransformers(work.dtype, rerank=model)
    members: list[Contestant] = [Ours(models.minilm(), model, work.dtype), library]
    if Vllm.installed():
        flags = ("--hf-overrides", JUDGE_OVERRIDES, "--chat-template", str(model / "chat_template.jinja"))
        members.append(Vllm("rerank", model, work.dtype, *flags))
    return Course(QWEN3, model, work.plan.tokens, library, members)


def _agree(work: Work, team: Team, course: Course) -> None:
    """The same scores, or no comparison. Also the warm-up."""
    drawn = _documents(course, AGREE_DOCUMENTS, min(course.tokens), seed=1_000)
    expected = team.reference(course.library, lambda: _scores(course.library, QUERIES[0], drawn)[1])
    if expected is not None:
        work.results.agreement[f"{course.what}: the scores that are compared span"] = round(float(np.ptp(expected)), 3)

    def compare(member: Contestant) -> None:
        scores = _scores(member, QUERIES[0], drawn)[1]
        if expected is None:
            return
        largest = float(np.abs(scores - expected).max())
        what = f"{course.what}: largest difference of a score to sentence-transformers"
        compared(work, member, what, largest, largest <= LARGEST_DIFFERENCE[work.dtype])

    for member in course.members:
        if member is not course.library:
            team.turn(member, f"{course.what}: comparing answers", partial(compare, member))


def _measure(work: Work, team: Team, course: Course, tokens: int, share: float) -> None:
    row = work.results.row(RERANK, row_name(course.what, tokens), "s", "lower")

    def turn(member: Contestant, query: str, drawn: list[str]) -> None:
        row.add(member.name, _scores(member, query, drawn)[0])

    for number in work.clock.rounds(work.plan.rounds, share):
        # Each round has documents of its own: a server that remembers answers would win by that alone.
        drawn = _documents(course, work.plan.documents, tokens, seed=tokens + number)
        for member in course.members:
            team.turn(member, f"{row.what}, round {number + 1}", partial(turn, member, QUERIES[number], drawn))


def _documents(course: Course, count: int, tokens: int, seed: int) -> list[str]:
    return documents(Tokenizer.from_file(str(course.model / "tokenizer.json")), count, tokens, seed)


def _scores(member: Contestant, query: str, drawn: list[str]) -> tuple[float, np.ndarray[tuple[int, ...], np.dtype[np.float64]]]:
    """(seconds, scores in the order of the documents)."""
    if isinstance(member, Server):
        seconds, scores = asyncio.run(load.rerank(member, query, drawn))
    else:
        assert isinstance(member, SentenceTransformers)
        answer = member.ask(call="rerank", query=query, documents=drawn)
        seconds, scores = float(answer["seconds"]), answer["scores"]
    return seconds, np.array(scores, np.float64)
