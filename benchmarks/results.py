"""What was measured, as data: rows with one list of samples per contestant."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

OURS, VLLM, INFINITY, LIBRARY, FORWARD = "this service", "vLLM", "infinity", "sentence-transformers", "our forward alone"
CONTESTANTS = (OURS, VLLM, INFINITY, LIBRARY, FORWARD)


@dataclass
class Row:
    """One thing measured. `samples`: contestant → one figure per round, in `unit`. `tokens_per_text` turns texts/s into tokens/s."""

    section: str
    what: str
    unit: str
    better: Literal["higher", "lower"]
    samples: dict[str, list[float]] = field(default_factory=dict)
    tokens_per_text: float | None = None

    def add(self, contestant: str, value: float) -> None:
        self.samples.setdefault(contestant, []).append(value)

    def median(self, contestant: str) -> float | None:
        return statistics.median(self.samples[contestant]) if self.samples.get(contestant) else None

    def ratio(self, peer: str) -> float | None:
        """Our median over that of `peer`, whichever direction is the better one."""
        ours, theirs = self.median(OURS), self.median(peer)
        return ours / theirs if ours is not None and theirs else None

    def advantage(self, peer: str) -> float | None:
        """How many times better than `peer` this service is; below 1 it is worse."""
        ratio = self.ratio(peer)
        return None if not ratio else ratio if self.better == "higher" else 1 / ratio


class Results:
    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.agreement: dict[str, float] = {}  # what was compared → the smallest cosine or the largest difference of a score
        self.left_out: dict[str, str] = {}  # contestant and where → why

    def row(self, section: str, what: str, unit: str, better: Literal["higher", "lower"], tokens_per_text: float | None = None) -> Row:
        """The row of that name, made at its first use."""
        found = self.find(section, what)
        if found is not None:
            return found
        self.rows.append(Row(section, what, unit, better, tokens_per_text=tokens_per_text))
        return self.rows[-1]

    def find(self, section: str, what: str) -> Row | None:
        return next((row for row in self.rows if (row.section, row.what) == (section, what)), None)

    def to_json(self) -> dict[str, Any]:
        rows = [
            {
                **asdict(row),
                "medians": {name: row.median(name) for name in row.samples},
                "advantage": {peer: row.advantage(peer) for peer in CONTESTANTS[1:]},
            }
            for row in self.rows
        ]
        return {"rows": rows, "agreement": self.agreement, "left_out": self.left_out}
