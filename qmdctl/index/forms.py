"""What a client may have sent for a passage: the known shapes around a chunk's text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from qmdctl.index.database import Chunk

QWEN = re.compile(r"qwen.*embed|embed.*qwen", re.IGNORECASE)  # as the clients themselves decide
GEMMA = re.compile(r"embeddinggemma|nomic|\.gguf$", re.IGNORECASE)


@dataclass(frozen=True)
class Form:
    """A shape. `input_type` is what goes into the request beside the text, so that the server treats the text in a certain way."""

    name: str
    shown: str
    render: Callable[[str, str], str]
    titled: bool = True
    input_type: str | None = None


# As most clients send it: a server with PROMPT_POLICY=native rewrites it into the served model's own form.
GEMMA_FORM = Form("gemma", "title: … | text: …", lambda title, text: f"title: {title or 'none'} | text: {text}")
# The same letters, embedded as they are. Only texts without a type and documents are rewritten, so a type that models have no prompt for
# has the text left alone.
LITERAL_FORM = Form("gemma, not rewritten", "title: … | text: … as it stands", GEMMA_FORM.render, input_type="clustering")
TITLE_FORM = Form("title and text", "title, line feed, text", lambda title, text: f"{title}\n{text}" if title else text)
BARE_FORM = Form("text alone", "the text alone", lambda title, text: text, titled=False)
DOCUMENT_FORM = Form("the model's own", "the served model's own form for documents", TITLE_FORM.render, input_type="document")
FORMS = (GEMMA_FORM, LITERAL_FORM, TITLE_FORM, BARE_FORM, DOCUMENT_FORM)


def expected_form(model: str) -> Form:
    """What a client that stored this model's name sends: the decision is made by the name in every client known here."""
    return TITLE_FORM if QWEN.search(model) else GEMMA_FORM


def surely_gemma(model: str) -> bool:
    """Whether the name is of a model for which every client known here sends Gemma's prefixes."""
    return bool(GEMMA.search(model)) and not QWEN.search(model)


def renderings(chunk: Chunk, form: Form) -> Iterator[str]:
    """The texts that the client may have sent in this form: with each title that it may have had, and without one."""
    titles = (*chunk.titles, "") if form.titled else ("",)
    yield from dict.fromkeys(form.render(title, chunk.text) for title in titles)
