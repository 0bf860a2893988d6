"""Known symptoms: lines of a failed container's log, or of Compose's output, → one sentence on the cause and the command that mends it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Symptom:
    """`name` is the key in symptoms.yaml; `source` says where the line was seen."""

    name: str
    cause: str
    fix: str
    source: str


@dataclass(frozen=True)
class Rule:
    """`service` is a pattern of the service's name, `compose` for Compose's own output. `state`: only for a container in that state."""

    name: str
    service: re.Pattern[str]
    line: re.Pattern[str]
    cause: str
    fix: str
    source: str
    state: str = ""


@cache
def rules() -> tuple[Rule, ...]:
    """In the order of the file, the more telling first."""
    import yaml

    table = yaml.safe_load((Path(__file__).parent / "symptoms.yaml").read_text("utf-8"))
    return tuple(
        Rule(
            name,
            re.compile(fields.get("service", ".*")),
            re.compile(fields["line"], re.IGNORECASE),
            fields["cause"],
            fields["fix"],
            fields["source"],
            fields.get("state", ""),
        )
        for name, fields in table.items()
    )


def match(service: str, lines: Sequence[str], facts: Mapping[str, str]) -> Symptom | None:
    """The first rule that fits one of `lines`, newest line first. None when nothing is known.

    `facts` fill the braces of a rule's sentences: settings in force, `service`, `state`; named groups of its pattern come before them.
    """
    for rule in rules():
        if not rule.service.fullmatch(service) or (rule.state and facts.get("state") != rule.state):
            continue
        for line in reversed(lines):
            found = rule.line.search(line)
            if found:
                named = {name: value or "" for name, value in found.groupdict().items()}
                values = _Blank({**facts, "service": service, **named})
                return Symptom(rule.name, rule.cause.format_map(values), rule.fix.format_map(values), rule.source)
    return None


class _Blank(dict[str, str]):
    """A fact that is not known shows as its own name."""

    def __missing__(self, key: str) -> str:
        return key
