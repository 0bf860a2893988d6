"""Texts of mixed lengths, from one word to more than any small model takes."""

from __future__ import annotations

from tests.support.texts import PLANETS, prose

QUERY = "How do I back up the laptop over the network?"
# Longest in the middle, so that a row that is put back in the wrong place shows.
TEXTS = [
    "importance of life",
    *PLANETS[:2],
    prose(180, seed=1),
    prose(700, seed=2),
    "Ein Überblick: naïve café, 東京の天気, emoji 🧭 and\ttabs\n\nand new lines.",
    prose(45, seed=3),
    "x",
    *PLANETS[2:],
]
