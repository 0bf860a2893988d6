"""The texts that everything is measured on: chunks of prose out of the standard library's docstrings."""

from __future__ import annotations

import ast
import hashlib
import math
import random
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

QUERIES = [
    "how do I back up the keys",
    "rotate a log file once a day",
    "parse an email with attachments",
    "what happens when the socket closes early",
    "compare two directories",
    "a lock that several processes share",
    "read a large file line by line",
    "time zones and daylight saving",
]


def words() -> list[str]:
    """Every word of the docstrings, in the order of the files' names."""
    found: list[str] = []
    library = Path(sysconfig.get_paths()["stdlib"])
    for file in sorted(library.glob("*.py")) + sorted(library.glob("[a-z]*/*.py")):
        if "site-packages" in file.parts or "test" in file.parts:
            continue
        try:
            tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                found += (ast.get_docstring(node) or "").split()
    return found


def chunks(count: int, least: int, most: int, seed: int = 7) -> list[str]:
    """`count` chunks of `least` to `most` words, short ones being the more frequent (uniform in the logarithm), as in real notes."""
    source = random.Random(seed)
    pool = words()
    made = []
    for _ in range(count):
        size = round(math.exp(source.uniform(math.log(least), math.log(most))))
        start = source.randrange(len(pool) - size)
        made.append(" ".join(pool[start : start + size]))
    return made


def documents(tokenizer: Tokenizer, count: int, tokens: int, seed: int) -> list[str]:
    """`count` documents of about `tokens` tokens (four fifths to six fifths of it); another seed draws other documents."""
    source = random.Random(seed)
    pool = words()
    made = []
    for _ in range(count):
        size = round(tokens * source.uniform(0.8, 1.2))
        start = source.randrange(len(pool) - size)
        text = " ".join(pool[start : start + size])  # a word is a token at least
        end = tokenizer.encode(text, add_special_tokens=False).offsets[size - 1][1]
        made.append(text[:end])
    return made


def digest(texts: list[str]) -> str:
    """Tells whether two runs had the same texts (another Python has other docstrings)."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12]
