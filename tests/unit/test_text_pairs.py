"""The judge's template, on byte-level tokenizers trained here (small vocabularies, the true splitting)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from embed_service.errors import BadRequest, ModelError
from embed_service.models.architectures import JUDGE_PREFIX, JUDGE_SUFFIX, NO_THINKING
from embed_service.models.spec import ModelSpec
from embed_service.text.pairs import PairTokenizer
from embed_service.text.tokens import TextTokenizer

# tokenizer.json of Qwen/Qwen3-Reranker-4B
QWEN_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITTINGS: dict[str, Any] = {
    "qwen": pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    ),
    "gpt2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
    "whole": pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
}
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
MOST = 400


def pairs(folder: Path, splitting: str, **changes: Any) -> PairTokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = SPLITTINGS[splitting]
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    corpus = [JUDGE_PREFIX, "<Document>: a <Document>: the <Query>: what", "the document: of and a query", Path(__file__).read_text()]
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in ("<|im_start|>", "<|im_end|>", "<|endoftext|>")])
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    fields: dict[str, Any] = {
        "role": "rerank", "id": "judge", "revision": "r", "path": str(folder), "architecture": "qwen3", "kind": "yes_no",
        "max_tokens": MOST, "vocabulary": 700, "template_prefix": JUDGE_PREFIX, "template_suffix": JUDGE_SUFFIX + NO_THINKING,
        "template_instruction": INSTRUCTION,
    }  # fmt: skip
    return TextTokenizer.load(ModelSpec(**{**fields, **changes})).pairs


@pytest.fixture(scope="module", params=SPLITTINGS)
def judge(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PairTokenizer:
    return pairs(tmp_path_factory.mktemp(request.param), request.param)


def plain(judge: PairTokenizer, query: str, document: str, instruction: str = INSTRUCTION) -> list[int]:
    """Qwen3-Reranker's model card: prefix, body and suffix tokenised apart, the body as one text."""
    body = f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}"
    parts = judge.tokenizer.body([judge.spec.template_prefix, body, judge.spec.template_suffix])
    return [int(i) for part in parts for i in part]


def test_known_splittings_tokenise_the_query_once(tmp_path: Path) -> None:
    for splitting in SPLITTINGS:
        assert pairs(tmp_path / splitting, splitting)._once == (splitting != "whole")


@given(st.text(max_size=30), st.lists(st.text(max_size=40), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
@example("q", [" leading space", "\nnewline", "\u0301combining", "  ", "", "'s", ": colon", "<|im_end|>", "\u00a0nbsp", "7 digits", "\r\n"])
def test_a_body_is_tokenised_as_one_text(judge: PairTokenizer, query: str, documents: list[str]) -> None:
    found = judge.documents(judge.head(query), documents)
    for document, tokenised in zip(documents, found, strict=True):
        expected = plain(judge, query, document)
        if len(expected) <= MOST:
            assert tokenised.ids.tolist() == expected
            assert not tokenised.cut


def test_a_long_document_is_cut_and_the_suffix_stays(judge: PairTokenizer) -> None:
    (found,) = judge.documents(judge.head("what"), ["the document " * 500])
    whole = plain(judge, "what", "the document " * 500)
    suffix = judge.tokenizer.body([judge.spec.template_suffix])[0].tolist()
    assert len(found.ids) == MOST
    assert found.cut
    assert found.full == len(whole)
    assert found.ids.tolist() == whole[: MOST - len(suffix)] + suffix


def test_a_long_query_is_cut_after_the_document(judge: PairTokenizer) -> None:
    short, long = judge.documents(judge.head("what query " * 500), ["end of it", "the document " * 500])
    end = judge.tokenizer.tokenize(f"\n<Document>: end of it{judge.spec.template_suffix}", add_special_tokens=False)
    text, ending = (judge.tokenizer.detokenize(ids, skip_special_tokens=False) for ids in (short.ids.tolist(), end))
    assert text.endswith(ending)
    assert len(short.ids) <= MOST
    assert len(long.ids) == MOST
    assert short.cut
    assert long.cut
    suffix = judge.tokenizer.body([judge.spec.template_suffix])[0].tolist()
    assert long.ids.tolist()[-len(suffix) :] == suffix


def test_another_instruction_takes_the_place_of_the_models(judge: PairTokenizer) -> None:
    (found,) = judge.documents(judge.head("q", "Find the recipe"), ["d"])
    assert found.ids.tolist() == plain(judge, "q", "d", "Find the recipe")


def test_an_instruction_that_leaves_no_room_is_refused(judge: PairTokenizer) -> None:
    with pytest.raises(BadRequest, match="maximum context length") as error:
        judge.head("q", "Find the recipe " * 1000)
    assert error.value.param == "instruction"


def test_max_tokens_per_doc(tmp_path: Path) -> None:
    judge = pairs(tmp_path, "qwen")
    head = judge.head("q")
    (two,) = judge.documents(head, ["0123456789 9876543210"], max_tokens_per_doc=2)
    (whole,) = judge.documents(head, [""])
    assert two.cut
    assert len(two.ids) <= len(whole.ids) + 2  # an empty document still has its space


def test_huge_documents_do_not_stall(judge: PairTokenizer) -> None:
    (found,) = judge.documents(judge.head("q" * 5_000_000), ["d " * 5_000_000])
    assert len(found.ids) == MOST
    assert found.cut


def test_a_classifier_with_a_template_is_judged_alike(tmp_path: Path) -> None:
    judge = pairs(tmp_path, "qwen", kind="classifier")
    (found,) = judge.documents(judge.head("q"), ["d"])
    assert found.ids.tolist() == plain(judge, "q", "d")
    assert found.second is None


def test_a_length_that_the_template_fills_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="MAX_INPUT_TOKENS"):
        pairs(tmp_path, "qwen", max_tokens=64)
