"""Results as Markdown tables, which read as well in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.aims import aims, lines
from benchmarks.models import QWEN_LAYERS, TOKENS
from benchmarks.plan import Plan
from benchmarks.results import CONTESTANTS, OURS, Results, Row

SUMMARY = "Where there is a peer, the figure is ours divided by the peer's, of texts/s or of times. Nothing is asserted."
PRECISION = {
    "float32": "Everyone computes in float32: this processor is slower in bfloat16",
    "bfloat16": "Everyone computes in bfloat16: this processor is faster in it than in float32",
}


def render(machine: dict[str, Any], plan: Plan, inputs: dict[str, Any], results: Results) -> str:
    """The whole report, beginning at heading level 3."""
    summary = _table(("work", "against", "aim", "measured", "holds?"), lines(aims(machine["units"], plan.documents, plan.memory), results))
    parts = [_about(machine, plan, inputs), f"### The aims\n\n{SUMMARY}\n\n{summary}"]
    for section in dict.fromkeys(row.section for row in results.rows):
        rows = [row for row in results.rows if row.section == section]
        parts.append(f"### {section}\n\n{_section(rows)}")
    if results.agreement:
        same = "\n".join(f"- {what}: {value:g}" for what, value in results.agreement.items())
        parts.append(f"### Do they compute the same?\n\n{same}")
    if results.left_out:
        gone = "\n".join(f"- {who}: {_short(reason)}" for who, reason in results.left_out.items())
        parts.append(f"### Left out\n\n{gone}")
    return "\n\n".join(parts) + "\n"


def _short(reason: str) -> str:
    """The first line and the last, where a log ends with what went wrong."""
    lines = reason.splitlines()
    return " … ".join(dict.fromkeys([lines[0], lines[-1]]))


def _about(machine: dict[str, Any], plan: Plan, inputs: dict[str, Any]) -> str:
    versions = "; ".join(
        f"{whose}: " + (", ".join(f"{name} {version}" for name, version in each.items()) or "not installed")
        for whose, each in machine["versions"].items()
    )
    gflops = ", ".join(f"{name} {value:.0f}" for name, value in machine["gflops"].items())
    precision = (
        PRECISION[inputs["dtype"]] if inputs["dtype"] == inputs["faster"] else f"Everyone computes in {inputs['dtype']}, as asked for"
    )
    return (
        f"- Machine: {machine['processor']}, {machine['cores']} cores ({', '.join(machine['units'])}), {machine['memory_gb']} GB, no GPU; "
        f"{machine['system']}, Python {machine['python']}; linear layer, GFLOPS: {gflops}; load at the start {machine['load']}\n"
        f"- {precision}\n"
        f"- Versions: {versions}\n"
        f"- Models: all-MiniLM-L6-v2 at {TOKENS} tokens; rerankers with random weights: XLM-R base's shape, "
        f"Qwen3-Reranker-0.6B's shape with {QWEN_LAYERS} layers\n"
        f"- Texts: {inputs['texts']} chunks of {plan.words[0]}–{plan.words[1]} words of docstrings, {inputs['tokens']:,} tokens "
        f"(digest {inputs['digest']}); queries of about 7 words; {plan.documents} documents in a rerank\n"
        f"- {plan.name} run, {inputs['seconds']:.0f} s; medians of up to {plan.rounds} rounds, the contestants in turn within each. "
        f"“×” is how many times better than the peer this service is; below 1 it is worse"
    )


def _section(rows: Sequence[Row]) -> str:
    present = dict.fromkeys(name for row in rows for name in row.samples)
    shown = [*(name for name in CONTESTANTS if name in present), *(name for name in present if name not in CONTESTANTS)]
    head = ["", *[part for name in shown for part in ((name,) if name == OURS else (name, "×"))], "rounds"]
    body = []
    for row in rows:
        line = [row.what]
        for name in shown:
            line.append(_value(row, name))
            if name != OURS:
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
