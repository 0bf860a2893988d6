"""Results as Markdown tables, which read as well in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.models import LAYERS, TOKENS
from benchmarks.plan import Plan
from benchmarks.results import CONTESTANTS, INFINITY, LIBRARY, OURS, Results, Row


def render(machine: dict[str, Any], plan: Plan, inputs: dict[str, Any], results: Results) -> str:
    """The whole report, beginning at heading level 3."""
    parts = [_about(machine, plan, inputs)]
    for section in dict.fromkeys(row.section for row in results.rows):
        rows = [row for row in results.rows if row.section == section]
        parts.append(f"### {section}\n\n{_section(rows)}")
    if results.response:
        table = _table(("form", "bytes", "ms"), [(r["form"], f"{r['bytes']:,}", f"{r['ms']:.2f}") for r in results.response])
        parts.append(f"### An answer of 32 × 2,560 numbers: size, and time to write it\n\n{table}")
    same = "\n".join(f"- {what}: {value:g}" for what, value in results.agreement.items())
    parts.append(f"### Do they compute the same?\n\n{same}")
    return "\n\n".join(parts) + "\n"


def _about(machine: dict[str, Any], plan: Plan, inputs: dict[str, Any]) -> str:
    ours = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    theirs = ", ".join(f"{name} {version}" for name, version in machine["peer_versions"].items()) or "not installed"
    gflops = ", ".join(f"{name} {value:.0f}" for name, value in machine["gflops"].items())
    return (
        f"- Machine: {machine['processor']}, {machine['cores']} cores ({', '.join(machine['units'])}), {machine['memory_gb']} GB, no GPU; "
        f"{machine['system']}, Python {machine['python']}; linear layer, GFLOPS: {gflops}; load at the start {machine['load']}\n"
        f"- Versions: {ours}; infinity's environment: {theirs}\n"
        f"- Embedding model: all-MiniLM-L6-v2 at {TOKENS} tokens. Reranker: XLM-R base's shape with {LAYERS} layers, random weights\n"
        f"- Texts: {inputs['texts']} chunks of {plan.words[0]}–{plan.words[1]} words of docstrings, {inputs['tokens']:,} tokens "
        f"(digest {inputs['digest']}); queries of about 7 words\n"
        f"- {plan.name} run, {inputs['seconds']:.0f} s; medians of up to {plan.rounds} rounds, the contestants in turn within each. "
        f"“×” is how many times better than the peer this service is; below 1 it is worse"
    )


def _section(rows: Sequence[Row]) -> str:
    shown = [name for name in CONTESTANTS if any(row.samples.get(name) for row in rows)]
    head = ["", *[part for name in shown for part in ((name,) if name == OURS else (name, "×"))], "rounds"]
    body = []
    for row in rows:
        line = [row.what]
        for name in shown:
            line.append(_value(row, name))
            if name in (INFINITY, LIBRARY):
                times = row.advantage(name)
                line.append("" if times is None else f"{times:.2f}")
        body.append((*line, str(max((len(samples) for samples in row.samples.values()), default=0))))
    return _table(head, body)


def _value(row: Row, name: str) -> str:
    value = row.median(name)
    if value is None:
        return ""
    digits = 0 if value >= 100 or not row.unit else 1 if value >= 10 else 2
    text = f"{value:,.{digits}f} {row.unit}".rstrip()
    return f"{text}, {value * row.tokens_per_text:,.0f} tokens/s" if row.tokens_per_text else text


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[column]) for line in (head, *body)) for column in range(len(head))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in (head, *body)]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])
