"""The labelled queries fit the pages that they point at, and the pages are cut as promised."""

from __future__ import annotations

from demo import chunks, queries


def words(text: str) -> int:
    return len(text.split())


def test_every_labelled_section_exists() -> None:
    headings = {(section.file, section.heading) for section in chunks.read_docs()}
    for query in queries.load():
        assert query.relevant <= headings, (query.text, query.relevant - headings)


def test_there_are_enough_distinct_queries() -> None:
    texts = [query.text for query in queries.load()]
    assert len(texts) == len(set(texts)) >= 40
    assert all(1 <= len(query.relevant) <= 3 for query in queries.load())


def test_headings_are_unique_within_a_page() -> None:
    headings = [(section.file, section.heading) for section in chunks.read_docs()]
    assert len(headings) == len(set(headings))


def test_a_hash_inside_a_code_block_is_no_heading() -> None:
    found = chunks.sections("# One\ntext\n```sh\n# a comment\n```\n## Two\nmore\n", "page.md")
    assert [(section.heading, section.text) for section in found] == [("One", "text\n```sh\n# a comment\n```"), ("Two", "more")]


def test_chunks_fit_and_lose_no_word() -> None:
    sections = chunks.read_docs()
    for limit in (40, 150):
        cut = chunks.cut(sections, words, limit)
        assert max(words(chunk.document) for chunk in cut) <= limit
        assert [word for chunk in cut for word in chunk.text.split()] == [word for section in sections for word in section.text.split()]


def test_a_short_section_stays_whole() -> None:
    section = chunks.Section("page.md", "Title", "one two\n\nthree")
    assert [chunk.text for chunk in chunks.cut([section], words, 50)] == ["one two\n\nthree"]
    assert chunks.cut([section], words, 50)[0].document == "title: Title | text: one two\n\nthree"
