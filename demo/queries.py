"""The labelled queries in queries.yaml."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

FILE = Path(__file__).with_name("queries.yaml")


@dataclass(frozen=True)
class LabelledQuery:
    text: str
    relevant: frozenset[tuple[str, str]]  # (file in docs/, heading)


def load(path: Path = FILE) -> list[LabelledQuery]:
    """Raises ValueError if a label is not a (file, heading) pair."""
    queries = []
    for entry in yaml.safe_load(path.read_text(encoding="utf-8")):
        pairs = entry["relevant"]
        if not pairs or any(len(pair) != 2 for pair in pairs):
            raise ValueError(f"{path.name}: {entry['query']!r} needs [file, heading] pairs under `relevant`.")
        queries.append(LabelledQuery(entry["query"], frozenset((file, heading) for file, heading in pairs)))
    return queries
