"""Broken Unicode and JSON bodies."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embed_service.errors import BadRequest
from embed_service.text.repair import parse_json, repair

ANY_TEXT = st.text(st.characters(exclude_categories=()))  # surrogates too
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False) | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("broken", "repaired"),
    [
        ("plain", "plain"),
        ("", ""),
        ("bad \ud83d tail", "bad \ufffd tail"),
        ("\ude00 head", "\ufffd head"),
        ("end \ud83d", "end \ufffd"),
        ("\ude00\ud83d", "\ufffd\ufffd"),
        ("pair \ud83d\ude00", "pair 😀"),
        ("\ud83d\ud83d\ude00", "\ufffd😀"),
        ("nul \x00 and \ufeff stay", "nul \x00 and \ufeff stay"),
    ],
)
def test_unpaired_surrogates_become_the_replacement_character(broken: str, repaired: str) -> None:
    assert repair(broken) == repaired


@given(ANY_TEXT)
def test_a_repaired_text_is_valid_and_keeps_all_else(text: str) -> None:
    repaired = repair(text)
    assert repair(repaired) == repaired
    assert [c for c in repaired.encode("utf-16-le").decode("utf-16-le") if c != "\ufffd"] == [
        c for c in text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "ignore") if c != "\ufffd"
    ]


@given(st.text())
def test_a_clean_text_is_the_same_object(text: str) -> None:
    assert repair(text) is text


@given(JSON)
def test_any_json_is_read_with_its_strings_repaired(value: object) -> None:
    def repaired(value: object) -> object:
        if isinstance(value, str):
            return repair(value)
        if isinstance(value, list):
            return [repaired(v) for v in value]
        if isinstance(value, dict):
            return {repair(k): repaired(v) for k, v in value.items()}
        return value

    assert parse_json(json.dumps(value).encode()) == repaired(value)


def test_surrogates_as_bytes_are_read() -> None:
    assert parse_json(b'{"a": "x \xed\xa0\xbd y"}') == {"a": "x \ufffd y"}
    assert parse_json(b'["\xed\xa0\xbd\xed\xb8\x80"]') == ["😀"]


def test_a_byte_order_mark_is_skipped() -> None:
    assert parse_json(b'\xef\xbb\xbf{"input": "x"}') == {"input": "x"}


@pytest.mark.parametrize(
    ("body", "part"),
    [
        (b"{", "not valid JSON"),
        (b"", "not valid JSON"),
        (b'{"a": NaN}', "NaN"),
        (b"[Infinity]", "Infinity"),
        (b"[-Infinity]", "-Infinity"),
        (b'{"a": "\xff"}', "UTF-8"),
        ('{"a": "x"}'.encode("utf-16"), "UTF-8"),
        (b"[" * 100_000 + b"]" * 100_000, "nested"),
        (b'{"a":' * 5_000 + b"1" + b"}" * 5_000, "nested"),
        (b'["\\ud83d", ' + b"1" * 5_000 + b"]", "not valid JSON"),
    ],
    ids=["open", "empty", "nan", "infinity", "minus-infinity", "latin-1", "utf-16", "deep-array", "deep-object", "long-integer"],
)
def test_what_is_not_json_is_refused_in_words(body: bytes, part: str) -> None:
    with pytest.raises(BadRequest) as error:
        parse_json(body)
    assert part in error.value.message
