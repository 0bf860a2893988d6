"""Texts for tests: plain English prose, cut emoji, control characters. Everything is seeded."""

from __future__ import annotations

import random

VOCABULARY = """
the a of and to in for with on from by about into over after under between through kitchen garden river mountain planet
engine signal letter window market bridge forest ocean winter summer morning evening teacher doctor farmer painter writer
captain music story number answer question reason method result theory practice history future memory network server laptop
backup folder password printer bread coffee pepper tomato apple butter sugar flour kettle oven carry build write read open
close begin finish compare measure explain remember forget discover improve repair connect protect search index small large
quiet bright heavy gentle early modern ancient careful simple private common local remote clear empty broken steady
"""
WORDS = VOCABULARY.split()

LONE_HIGH = "\ud83d"
LONE_LOW = "\ude00"
REPLACEMENT = "\ufffd"

RED_PLANET = "Which planet is known as the Red Planet?"
PLANETS = [
    "Venus is often called Earth's twin because of its similar size and proximity.",
    "Mars, known for its reddish appearance, is often referred to as the Red Planet.",
    "Jupiter, the largest planet in our solar system, has a prominent red spot.",
    "Saturn, famous for its rings, is sometimes mistaken for the Red Planet.",
]
# Cosines of all-MiniLM-L6-v2, from the tests of sentence-transformers (tests/sentence_transformer/test_pretrained.py).
PLANET_COSINES = [0.46371, 0.81205, 0.72828, 0.75051]


def prose(words: int, seed: int = 0) -> str:
    """`words` words of one token each, in sentences of about a dozen."""
    source = random.Random(seed)
    picked = [source.choice(WORDS) for _ in range(words)]
    for end in range(11, words, 12):
        picked[end] += "."
    return " ".join(picked)


def chunk(characters: int = 2_000, seed: int = 0) -> str:
    """About as much text as a QMD chunk has."""
    return prose(characters // 4, seed)[:characters]
