"""docs/*.md as passages of at most the embedding model's length, cut at headings as QMD cuts notes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"

_HEADING = re.compile(r"^(#{1,3}) +(.+?)\s*$")


@dataclass(frozen=True)
class Section:
    file: str
    heading: str
    text: str  # without the heading line


@dataclass(frozen=True)
class Chunk:
    file: str
    heading: str
    text: str

    @property
    def section(self) -> tuple[str, str]:
        return self.file, self.heading

    @property
    def document(self) -> str:
        """As a QMD client sends it for indexing (embeddinggemma's document form)."""
        return f"title: {self.heading} | text: {self.text}"

    @property
    def passage(self) -> str:
        """As a reranker reads it."""
        return f"{self.heading}\n{self.text}"


def query_text(query: str) -> str:
    """A query as a QMD client sends it for embedding (embeddinggemma's query form)."""
    return f"task: search result | query: {query}"


def sections(markdown: str, file: str) -> list[Section]:
    """The text under each heading of level 1 to 3; lines that begin with # inside a code block are no headings."""
    found: list[tuple[str, list[str]]] = []
    fenced = False
    for line in markdown.splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        heading = None if fenced else _HEADING.match(line)
        if heading:
            found.append((heading[2], []))
        elif found:
            found[-1][1].append(line)
    return [Section(file, heading, "\n".join(lines).strip()) for heading, lines in found]


def read_docs(folder: Path = DOCS) -> list[Section]:
    """Every section of every page, pages in alphabetical order; sections without text are left out."""
    return [
        section for page in sorted(folder.glob("*.md")) for section in sections(page.read_text(encoding="utf-8"), page.name) if section.text
    ]


def cut(found: Iterable[Section], count: Callable[[str], int], limit: int) -> list[Chunk]:
    """Split each section into chunks whose `document` form has at most `limit` tokens by `count`.

    Cuts come at paragraphs, else at lines, else at words; one word longer than the limit stays whole, and the service cuts it.
    """
    chunks = []
    for section in found:

        def fits(text: str, section: Section = section) -> bool:
            return count(Chunk(section.file, section.heading, text).document) <= limit

        chunks += [Chunk(section.file, section.heading, piece) for piece in _pack(section.text, ("\n\n", "\n", " "), fits)]
    return chunks


def _pack(text: str, separators: tuple[str, ...], fits: Callable[[str], bool]) -> list[str]:
    """Greedy: as many neighbouring parts in a piece as fit, finer separators where one part does not."""
    if fits(text) or not separators:
        return [text]
    pieces: list[str] = []
    current = ""
    for part in text.split(separators[0]):
        joined = f"{current}{separators[0]}{part}" if current else part
        if fits(joined):
            current = joined
            continue
        if current:
            pieces.append(current)
        *whole, current = _pack(part, separators[1:], fits)
        pieces += whole
    return [piece for piece in [*pieces, current] if piece.strip()]
