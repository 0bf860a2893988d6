"""Parsing, fusing and judging without a server."""

from __future__ import annotations

import math

import numpy as np
import pytest

from demo import rankers, search

A, B, C, D = (("page.md", letter) for letter in "ABCD")


def test_expansion_keeps_usable_lines_only() -> None:
    text = (
        "Sure!\nlex: passport renewal form\n- VEC: how can a passport be renewed\n"
        "hyde: Tomatoes want sun.\nvec: renew a passport\nvec: renew  passport\n"
    )
    assert search.parse_expansion("renew a passport", text) == (
        ("lex", "passport renewal form"),
        ("vec", "how can a passport be renewed"),
        ("vec", "renew  passport"),
    )


@pytest.mark.parametrize("text", ["", "I am a helpful assistant.", "lex:", "vec: " + "passport " * 100])
def test_unusable_text_gives_no_lines(text: str) -> None:
    assert search.parse_expansion("renew a passport", text) == ()


def test_one_query_is_ordered_by_cosine() -> None:
    index = np.eye(4, dtype=np.float32)
    query = np.array([[0.1, 0.9, 0.3, 0.2]], dtype=np.float32)
    assert search.retrieve(query, index, limit=3) == [1, 2, 3]


def test_the_own_query_counts_twice_in_the_fusion() -> None:
    index = np.eye(3, dtype=np.float32)
    queries = np.array([[0.9, 0.5, 0.1], [0.1, 0.5, 0.9]], dtype=np.float32)
    assert search.retrieve(queries, index) == [0, 1, 2]
    assert search.retrieve(queries[::-1], index) == [2, 1, 0]


def test_quality_by_hand() -> None:
    measured = rankers.quality([A, B, C], frozenset({B, D}))
    assert measured.mrr_at_10 == 0.5
    assert measured.recall_at_3 == 0.5
    assert measured.ndcg_at_10 == pytest.approx((1 / math.log2(3)) / (1 + 1 / math.log2(3)))
    assert rankers.quality([B, D, A], frozenset({B, D})) == rankers.Quality(1.0, 1.0, 1.0)
    assert rankers.quality([A, C], frozenset({B})) == rankers.Quality(0.0, 0.0, 0.0)


def test_places_after_the_tenth_do_not_count() -> None:
    ranking = [("page.md", str(number)) for number in range(10)] + [A]
    assert rankers.quality(ranking, frozenset({A})) == rankers.Quality(0.0, 0.0, 0.0)


def test_a_section_counts_once() -> None:
    assert rankers.once([A, B, A, C, B]) == [A, B, C]


def test_best_is_by_ndcg_then_speed() -> None:
    rows = [
        rankers.Row("slow", "x", 0.9, 0.7001, 0.5, 2.0),
        rankers.Row("fast", "y", 0.1, 0.7004, 0.5, 1.0),
        rankers.Row("low", "z", 1, 0.6, 1, 0.1),
    ]
    assert rankers.best(rows).name == "fast"
