"""Notes in Markdown, made up from a seed: the same seed gives the same texts, another run other ones, so that no cache answers."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

SENTENCES = 1500


@cache
def _words() -> dict[str, list[str]]:
    import yaml

    words: dict[str, list[str]] = yaml.safe_load((Path(__file__).parent / "texts.yaml").read_text("utf-8"))
    return words


def _one(source: random.Random, kind: str) -> str:
    return source.choice(_words()[kind])


class Notes:
    """All texts of one run. Chunks and queries have numbers; the same number is the same text."""

    def __init__(self, seed: str) -> None:
        self.seed = seed
        source = random.Random(f"{seed} sentences")
        self._sentences = [_sentence(source) for _ in range(SENTENCES)]

    def chunk(self, number: int, characters: int) -> tuple[str, str]:
        """(title, text of at most `characters` characters)."""
        source = random.Random(f"{self.seed} chunk {number}")
        # The run and the number stand at the front: chunks must not be equal, and the engine may keep what many begin with.
        title = f"{self.seed}-{number} {_one(source, 'subjects')}"
        parts, length = [f"## {title[:1].upper()}{title[1:]}\n\n"], len(title) + 5
        while length < characters:
            part = self._block(source)
            parts.append(part)
            length += len(part)
        return title, "".join(parts)[:characters].rstrip()

    def query(self, number: int) -> str:
        source = random.Random(f"{self.seed} query {number}")
        return f"{_one(source, 'questions')} {_one(source, 'reasons')}: {_one(source, 'subjects')} {self.seed}-{number}"

    def _block(self, source: random.Random) -> str:
        """A paragraph, or now and then a list or some code."""
        kind = source.random()
        if kind < 0.12:
            return (
                "```\n"
                + "\n".join(_one(source, "code").format(n=source.randrange(2, 60)) for _ in range(source.randrange(1, 4)))
                + "\n```\n\n"
            )
        if kind < 0.3:
            return "".join(f"- {source.choice(self._sentences)}\n" for _ in range(source.randrange(2, 6))) + "\n"
        return " ".join(source.choice(self._sentences) for _ in range(source.randrange(2, 7))) + "\n\n"


def _sentence(source: random.Random) -> str:
    if source.random() < 0.25:
        return _one(source, "remarks").format(n=source.randrange(2, 90))
    sentence = f"{_one(source, 'subjects')} {_one(source, 'verbs')} {_one(source, 'reasons')}"
    if source.random() < 0.4:
        sentence += f", and {_one(source, 'subjects')} {_one(source, 'verbs')} {_one(source, 'reasons')}"
    return f"{sentence[:1].upper()}{sentence[1:]}."
