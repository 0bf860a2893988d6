"""Token ids against transformers' own tokenisation."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embed_service.errors import ModelError
from embed_service.models.spec import ModelSpec
from embed_service.text.pool import TokenizerPool
from embed_service.text.tokens import TextTokenizer
from tests.support.service import minilm_path

TEXTS = [
    "",
    "hello",
    "The capital of China is Beijing.",
    "日本語のテキスト と emoji 😀😀 and \ufffd",
    "[CLS] special [SEP] tokens [MASK] in the text",
    "nul \x00 tab \t\r\n" * 3,
    "word " * 400,
    "x" * 300,
    "ÀÉÎ café ﬁ",
]


def spec(kind: Any = "embedding", max_tokens: int = 64) -> ModelSpec:
    return ModelSpec(
        role="embed", id="minilm", revision="r", path=minilm_path(), architecture="bert", kind=kind, max_tokens=max_tokens,
        vocabulary=30_522, segments=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer.load(spec())


@pytest.fixture(scope="module")
def reference() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(minilm_path())


@pytest.mark.parametrize("most", [2, 3, 10, 64, 1000])
def test_texts_equal_transformers(tokenizer: TextTokenizer, reference: Any, most: int) -> None:
    for text, found in zip(TEXTS, tokenizer.texts(TEXTS, max_tokens=most), strict=True):
        assert found.ids.tolist() == reference(text, truncation=True, max_length=most)["input_ids"]
        assert found.full == len(reference(text)["input_ids"])
        assert found.cut == (found.full > most)
        assert found.ids.dtype == np.int32


def test_a_cut_at_the_start_keeps_the_end(tokenizer: TextTokenizer, reference: Any) -> None:
    reference.truncation_side = "left"
    try:
        for text, found in zip(TEXTS, tokenizer.texts(TEXTS, max_tokens=10, side="START"), strict=True):
            assert found.ids.tolist() == reference(text, truncation=True, max_length=10)["input_ids"]
    finally:
        reference.truncation_side = "right"


@given(st.text(max_size=200))
@settings(max_examples=50, deadline=None)
def test_any_text_equals_transformers(tokenizer: TextTokenizer, reference: Any, text: str) -> None:
    (found,) = tokenizer.texts([text], max_tokens=64)
    assert found.ids.tolist() == reference(text, truncation=True, max_length=64)["input_ids"]


def test_pairs_equal_transformers(reference: Any) -> None:
    pairs = TextTokenizer.load(spec("classifier")).pairs
    for query in ("", "what is it", "a " * 20):
        for document, found in zip(TEXTS, pairs.documents(pairs.head(query), TEXTS), strict=True):
            # As lists: transformers takes an empty second text for none otherwise.
            expected = {k: v[0] for k, v in reference([query], [document], truncation="only_second", max_length=64).items()}
            assert found.ids.tolist() == expected["input_ids"]
            types = [0] * found.second + [1] * (len(found.ids) - found.second) if found.second is not None else []
            assert types == expected["token_type_ids"]
            assert found.full == len(reference([query], [document])["input_ids"][0])


def test_a_long_query_leaves_the_document_a_few_tokens() -> None:
    pairs = TextTokenizer.load(spec("classifier")).pairs
    short, long = pairs.documents(pairs.head("query " * 500), ["short document", "document " * 500])
    assert len(short.ids) == len(long.ids) == 64
    assert short.cut
    assert long.cut
    second = short.second or 0
    assert short.ids[second:].tolist() == pairs.tokenizer.texts(["short document"], max_tokens=64)[0].ids[1:].tolist()
    assert (long.ids[long.second :] == long.ids[-2]).sum() >= 8


def test_max_tokens_per_doc_cuts_documents_alone() -> None:
    pairs = TextTokenizer.load(spec("classifier")).pairs
    (found,) = pairs.documents(pairs.head("a query"), ["one two three four"], max_tokens_per_doc=2)
    (whole,) = pairs.documents(pairs.head("a query"), ["one two"])
    assert found.ids.tolist() == whole.ids.tolist()
    assert found.cut
    assert not whole.cut


def test_a_cross_encoder_ignores_an_instruction() -> None:
    pairs = TextTokenizer.load(spec("classifier")).pairs
    assert pairs.head("a query", "Find it").ids.tolist() == pairs.head("a query").ids.tolist()


def test_a_template_that_fills_the_model_is_told() -> None:
    with pytest.raises(ModelError, match="MAX_INPUT_TOKENS"):
        TextTokenizer.load(spec("classifier", max_tokens=4))


def test_huge_texts_are_cut_by_characters_first(tokenizer: TextTokenizer) -> None:
    found, other = tokenizer.texts(["hello " * 1_000_000, "x" * 1_000_000 + " end"], max_tokens=64)
    assert found.ids.tolist() == tokenizer.texts(["hello " * 100], max_tokens=64)[0].ids.tolist()
    assert found.cut
    assert other.cut
    (end,) = tokenizer.texts(["hello " * 1_000_000 + "the end"], max_tokens=4, side="START")
    assert end.ids.tolist() == tokenizer.texts(["the end"], max_tokens=4)[0].ids.tolist()


def test_ids_of_a_client_are_taken_as_they_are(tokenizer: TextTokenizer) -> None:
    ids = tokenizer.tokenize("a long enough text to be cut", add_special_tokens=True)
    assert tokenizer.given(ids, max_tokens=64).ids.tolist() == ids
    assert tokenizer.given(ids[1:-1], max_tokens=64).ids.tolist() == ids[1:-1]
    cut = tokenizer.given(ids, max_tokens=5)
    assert cut.ids.tolist() == [*ids[:4], ids[-1]]
    assert cut.cut
    assert tokenizer.given(ids, max_tokens=5, side="START").ids.tolist() == [ids[0], *ids[-4:]]
    assert tokenizer.given(ids[1:-1], max_tokens=5).ids.tolist() == ids[1:6]


def test_tokenize_and_detokenize_are_each_others_inverse(tokenizer: TextTokenizer, reference: Any) -> None:
    ids = tokenizer.tokenize("hello world " * 200, add_special_tokens=False)
    assert ids == reference.encode("hello world " * 200, add_special_tokens=False)
    assert tokenizer.detokenize(ids, skip_special_tokens=False) == ("hello world " * 200).strip()
    assert tokenizer.detokenize([101, 7592, 102], skip_special_tokens=True) == "hello"


@pytest.mark.parametrize("content", [None, "{}", "not json"])
def test_a_broken_tokenizer_is_a_model_error(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError) as error:
        TextTokenizer.load(ModelSpec(**{**spec().to_wire(), "path": str(tmp_path)}))
    assert error.value.code == "bad_files"


def test_the_pool_keeps_the_order(tokenizer: TextTokenizer) -> None:
    texts = [f"text {n} " * (n % 50) for n in range(600)]

    async def work() -> list[list[int]]:
        pool = TokenizerPool(2)
        try:
            return [found.ids.tolist() for found in await pool.map(lambda run: tokenizer.texts(run, max_tokens=64), texts)]
        finally:
            pool.close()

    assert asyncio.run(work()) == [found.ids.tolist() for found in tokenizer.texts(texts, max_tokens=64)]
