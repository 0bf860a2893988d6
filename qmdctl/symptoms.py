"""Known symptoms: lines of a failed container's log, or of Compose's output, → one sentence on the cause and the command that mends it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

COMPOSE = "compose"  # the service's name for what Compose and Docker print
PROJECT = "qmd"  # Compose's project, where .env does not name it


@dataclass(frozen=True)
class Symptom:
    """`name` is the key in symptoms.yaml; `source` says where the line was seen."""

    name: str
    cause: str
    fix: str
    source: str


@dataclass(frozen=True)
class Rule:
    """`service` is a pattern of the service's name, `compose` for Compose's own output.

    `state`: only for a container in that state; `needs`: only where this fact is known.
    """

    name: str
    service: re.Pattern[str]
    line: re.Pattern[str]
    cause: str
    fix: str
    source: str
    state: str = ""
    needs: str = ""


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
            fields.get("needs", ""),
        )
        for name, fields in table.items()
    )


def match(service: str, lines: Sequence[str], facts: Mapping[str, str]) -> Symptom | None:
    """The rule that fits. None when nothing is known.

    In a container's log, which holds earlier runs as well, the newest line that a rule knows. In Compose's output, which is of one run,
    the first rule that knows a line: Docker says first what is wrong and then what it could not do for that reason.

    `facts` fill the braces of a rule's sentences: settings in force, `service`, `state`; named groups of its pattern come before them.
    """
    fitting = [rule for rule in rules() if rule.service.fullmatch(service) and rule.state in ("", facts.get("state"))]
    fitting = [rule for rule in fitting if not rule.needs or facts.get(rule.needs)]
    newest = list(reversed(lines))
    if service == COMPOSE:
        pairs = [(rule, line) for rule in fitting for line in newest]
    else:
        pairs = [(rule, line) for line in newest for rule in fitting]
    for rule, line in pairs:
        found = rule.line.search(line)
        if found:
            named = {name: value or "" for name, value in found.groupdict().items()}
            project = facts.get("COMPOSE_PROJECT_NAME") or PROJECT
            values = _Blank({**facts, "COMPOSE_PROJECT_NAME": project, "service": service, **named})
            return Symptom(rule.name, rule.cause.format_map(values), rule.fix.format_map(values), rule.source)
    return None


class _Blank(dict[str, str]):
    """A fact that is not known shows as its own name."""

    def __missing__(self, key: str) -> str:
        return key
