"""What the demo shows."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from demo import rankers
from demo.search import Expansion, Ranked

SNIPPET = 300  # characters, cut further to the width of the terminal


def ranking_table(table: rankers.Table) -> RenderableType:
    """The measured comparison, the winner in bold."""
    title = f"Rerankers on {table.queries} labelled queries over docs/, {table.candidates} candidates each"
    shown = RichTable(title=title, title_justify="left")
    shown.add_column("reranker")
    for figure in ("MRR@10", "nDCG@10", "recall@3", "s per query"):
        shown.add_column(figure, justify="right")
    winner = rankers.best(table.rows)
    for row in table.rows:
        figures = [f"{value:.3f}" for value in (row.mrr_at_10, row.ndcg_at_10, row.recall_at_3, row.seconds_per_query)]
        shown.add_row(row.name, *figures, style="bold green" if row == winner else "")
    versions = ", ".join(f"{name} {version}" for name, version in table.versions.items())
    notes = [
        f"Measured on {table.measured}: {table.machine} at a load average of {table.load_average}; {table.chunks} chunks; {versions}.",
        f"Not compared: {table.absent}",
        "Repeat with: python -m demo.compare",
    ]
    return Group(shown, *(Text(note, style="dim") for note in notes))


def expansion_lines(expansion: Expansion) -> RenderableType:
    if not expansion.lines:
        first = " ".join(expansion.raw.split())[:60]
        return Text(f'  The small model wrote nothing usable ("{first}…"): the plain query is searched.', style="yellow")
    shown = [Text(f"  {kind}: {text}") for kind, text in expansion.lines]
    if not expansion.texts:
        shown.append(Text("  Only lines for a keyword search: the plain query alone is embedded.", style="yellow"))
    return Group(*shown)


def results(ranked: Sequence[Ranked], count: int = 5) -> RenderableType:
    parts: list[RenderableType] = []
    for place, item in enumerate(ranked[:count], 1):
        score = (f"{place}. {item.score:.3f}  ", "bold green")
        parts.append(Text.assemble(score, (f"docs/{item.chunk.file}", "cyan"), f" § {item.chunk.heading}"))
        snippet = " ".join(item.chunk.text.split())
        parts.append(Text(f"   {snippet[:SNIPPET]}", style="dim", no_wrap=True, overflow="ellipsis"))
    return Group(*parts)


def timings(rows: Sequence[tuple[str, float, str]]) -> RenderableType:
    shown = RichTable(title="Time of each step", title_justify="left")
    shown.add_column("step")
    shown.add_column("seconds", justify="right")
    shown.add_column("what")
    for step, seconds, what in rows:
        shown.add_row(step, f"{seconds:.2f}", what)
    return shown


def client_block(url: str) -> str:
    """The block for ~/.config/qmd/index.yml of chronologos/qmd, YAML. Model names are advisory; the service answers for all of them."""
    return (
        "remote:\n"
        f"  url: {url}\n"
        f"  embed_url: {url}\n"
        f"  generation_url: {url}\n"
        "  models:\n"
        "    embed: default\n"
        "    generate: default\n"
        "    rerank: rerank\n"
    )
