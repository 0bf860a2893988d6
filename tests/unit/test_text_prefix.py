"""The prefix that the documents of one query share, in token ids."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from embed_service.models.architectures import JUDGE_PREFIX, JUDGE_SUFFIX, NO_THINKING
from embed_service.models.spec import ModelSpec
from embed_service.text.pairs import PairTokenizer, common_prefix
from embed_service.text.tokens import TextTokenizer, Tokenised
from tests.support.checkpoints import checkpoint

MOST = 400
# The first token of each joins the space behind "<Document>:", so a prefix of text would end inside it.
MERGING = ["the cat sat", "a dog ran"]


def pairs(name: str, **changes: Any) -> PairTokenizer:
    folder = checkpoint(name)
    fields: dict[str, Any] = {
        "role": "rerank", "id": name, "revision": "r", "path": str(folder), "architecture": "qwen3", "kind": "yes_no",
        "max_tokens": MOST, "vocabulary": 151_669, "template_prefix": JUDGE_PREFIX, "template_suffix": JUDGE_SUFFIX + NO_THINKING,
        "template_instruction": "Given a web search query, retrieve relevant passages that answer the query",
    }  # fmt: skip
    return TextTokenizer.load(ModelSpec(**{**fields, **changes})).pairs


@pytest.fixture(scope="module")
def judge() -> PairTokenizer:
    return pairs("qwen3-reranker")


def shared(judge: PairTokenizer, query: str, documents: list[str]) -> list[Tokenised]:
    return judge.shared(judge.documents(judge.head(query), documents))


def longest(sequences: list[list[int]]) -> int:
    """The greatest length that fits, tried from above."""
    if len({tuple(s) for s in sequences}) < 2:
        return 0
    most = min(len(s) for s in sequences) - 1
    return next(length for length in range(most, -1, -1) if len({tuple(s[:length]) for s in sequences}) == 1)


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), max_size=6), st.lists(st.integers(0, 2), max_size=5))
@settings(max_examples=300, deadline=None)
@example([[1], [1, 2]], [])
@example([[1, 2], [1, 2]], [])
@example([], [])
def test_the_longest_prefix_that_leaves_each_a_token(bodies: list[list[int]], head: list[int]) -> None:
    sequences = [head + body for body in bodies]
    assert common_prefix([np.array(s, np.int32) for s in sequences]) == longest(sequences)


@given(st.text(max_size=20), st.lists(st.text(max_size=30), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
@example("q", ["", "a"])
@example("q", ["same", "same"])
@example("q", ["a", "a b", "a b c"])
@example("query " * 500, ["short", "long " * 500])
def test_what_is_shared_is_common_and_maximal(judge: PairTokenizer, query: str, documents: list[str]) -> None:
    sequences = shared(judge, query, documents)
    assert {s.prefix for s in sequences} == {longest([s.ids.tolist() for s in sequences])}
    plain = judge.documents(judge.head(query), documents)
    assert [s.ids.tolist() for s in sequences] == [s.ids.tolist() for s in plain]
    assert [(s.full, s.second) for s in sequences] == [(s.full, s.second) for s in plain]


def test_a_first_token_that_joins_the_space_is_each_documents_own(judge: PairTokenizer) -> None:
    sequences = shared(judge, "what", MERGING)
    tokens = [judge.tokenizer.detokenize([int(s.ids[s.prefix])], skip_special_tokens=False) for s in sequences]
    assert tokens == [" the", " a"]
    before = judge.tokenizer.detokenize(sequences[0].ids[: sequences[0].prefix].tolist(), skip_special_tokens=False)
    assert before.endswith("<Query>: what\n<Document>:")


def test_what_documents_begin_with_alike_is_shared_too(judge: PairTokenizer) -> None:
    apart, alike = shared(judge, "what", MERGING), shared(judge, "what", ["the cat sat", "the cat ran"])
    assert alike[0].prefix == apart[0].prefix + 2


def test_a_document_that_begins_another_keeps_a_token(judge: PairTokenizer) -> None:
    short, long = shared(judge, "what", ["the cat", "the cat sat on the mat"])
    assert short.prefix == long.prefix < min(len(short.ids), len(long.ids))
    assert short.ids[short.prefix] != long.ids[long.prefix]


def test_an_empty_document(judge: PairTokenizer) -> None:
    empty, other = shared(judge, "what", ["", "the cat"])
    assert 0 < empty.prefix == other.prefix < len(empty.ids)


@pytest.mark.parametrize("documents", [["one"], ["one", "one", "one"]])
def test_nothing_is_shared_by_one_sequence(judge: PairTokenizer, documents: list[str]) -> None:
    assert [s.prefix for s in shared(judge, "what", documents)] == [0] * len(documents)


def test_a_query_that_was_cut_is_shared_as_far_as_it_goes(judge: PairTokenizer) -> None:
    head = judge.head("what query " * 500)
    first, second = judge.shared(judge.documents(head, MERGING))
    assert head.cut and first.cut
    assert first.prefix == second.prefix == len(judge.tokenizer.body([judge.spec.template_prefix])[0]) + len(head.ids)


def test_a_cross_encoder_shares_nothing() -> None:
    plain = {"architecture": "bert", "kind": "classifier", "template_prefix": "", "template_suffix": "", "vocabulary": 30_522}
    crossed = pairs("bert-cross-encoder", segments=True, **plain)
    first, second = shared(crossed, "the same query", MERGING)
    assert first.prefix == second.prefix == 0
    assert common_prefix([first.ids, second.ids]) > 0, "there is one that must not be shared"


def test_a_classifier_with_a_template_shares() -> None:
    assert shared(pairs("qwen3-reranker-seq-cls", kind="classifier"), "what", MERGING)[0].prefix > 0
