"""Quality of rankings on the labelled queries, and the measured table that decides which reranker the demo uses."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("ranking.json")

Section = tuple[str, str]


@dataclass(frozen=True)
class Row:
    """One ranker's means over the labelled queries. `rerank_model` names what RERANK_MODEL was: `minilm` or `smollm2`."""

    name: str
    rerank_model: str
    mrr_at_10: float
    ndcg_at_10: float
    recall_at_3: float
    seconds_per_query: float


@dataclass(frozen=True)
class Quality:
    mrr_at_10: float
    ndcg_at_10: float
    recall_at_3: float


def once(sections: Iterable[Section]) -> list[Section]:
    """A section counts at its best chunk's place."""
    return list(dict.fromkeys(sections))


def quality(ranking: Sequence[Section], relevant: frozenset[Section]) -> Quality:
    """Of one ranking without repeats; nDCG with binary gains and log2 discount (Järvelin, Kekäläinen 2002)."""
    hits = [section in relevant for section in ranking[:10]]
    mrr = next((1 / place for place, hit in enumerate(hits, 1) if hit), 0.0)
    gain = sum(1 / math.log2(place + 1) for place, hit in enumerate(hits, 1) if hit)
    ideal = sum(1 / math.log2(place + 1) for place in range(1, min(len(relevant), 10) + 1))
    return Quality(mrr, gain / ideal, sum(hits[:3]) / min(len(relevant), 3))


def mean(qualities: Sequence[Quality]) -> Quality:
    n = len(qualities)
    return Quality(
        sum(q.mrr_at_10 for q in qualities) / n, sum(q.ndcg_at_10 for q in qualities) / n, sum(q.recall_at_3 for q in qualities) / n
    )


def best(rows: Sequence[Row]) -> Row:
    """By nDCG@10; the faster one at a tie of three digits."""
    return max(rows, key=lambda row: (round(row.ndcg_at_10, 3), -row.seconds_per_query))


@dataclass(frozen=True)
class Table:
    """What `python -m demo.compare` measured."""

    measured: str  # date
    machine: str
    load_average: float  # of the machine at the end; above its cores, other programs made the seconds longer
    versions: dict[str, str]
    queries: int
    chunks: int
    candidates: int
    rows: tuple[Row, ...]
    absent: str  # what could not be compared, and why

    def save(self, path: Path = FILE) -> None:
        path.write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path = FILE) -> Table:
        fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**fields, "rows": tuple(Row(**row) for row in fields["rows"])})
