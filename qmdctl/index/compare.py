"""Stored vectors beside the server's own of the same texts: whether both are of one space, and what mends it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from qmdctl.index.database import Chunk, Index
from qmdctl.index.forms import DOCUMENT_FORM, FORMS, LITERAL_FORM, TITLE_FORM, Form, expected_form, renderings, surely_gemma
from qmdctl.index.server import EmbedServer

# The same model and the same text: above .999 whatever the device and the precision (docs/models.md), 1 - 1e-5 in float32. Another prompt
# moves a short text's vector by far more, a long one's by less, so below that the other known forms are tried as well.
CLEAR = 0.999
SAME = 0.995
NEAR = 0.98  # the same model from other weights (a quantised file, say): a search finds the same
TIE = 0.0005  # cosines that differ by no more than the noise do not tell two forms apart
ON_LAPTOP, ON_BOX = "on this laptop", "on the GPU box"

Kind = Literal["same", "different", "mixed", "unknown"]
State = Literal["ok", "made raw", "made native", "foreign"]
KINDS: dict[State, str] = {
    "made raw": "of its model under PROMPT_POLICY=raw",
    "made native": "of its model under PROMPT_POLICY=native",
    "foreign": "of another model or prompt",
}


@dataclass(frozen=True)
class Match:
    """A stored vector, the form whose text comes nearest to it on the server, and the cosine of the two."""

    chunk: Chunk
    form: Form
    cosine: float

    def state(self, policy: str) -> State:
        """`policy`: the server's own. What the client sends now is told by the form that matches, or by the name that it stored."""
        if self.cosine < NEAR:
            return "foreign"
        if self.form is LITERAL_FORM and policy != "raw":
            return "made raw"
        if policy == "raw" and (self.form is DOCUMENT_FORM or (self.form is TITLE_FORM and surely_gemma(self.chunk.model))):
            return "made native"
        return "ok"


@dataclass(frozen=True)
class Step:
    """A command and the machine to type it on."""

    where: str
    command: str
    effect: str

    def __str__(self) -> str:
        return f"{self.where}: {self.command} ({self.effect})"


@dataclass
class Verdict:
    """`sentence` says it; `steps` mend it, the first being enough."""

    kind: Kind
    sentence: str
    steps: list[Step] = field(default_factory=list)
    matches: list[Match] = field(default_factory=list)
    model: str = ""
    policy: str = ""
    fingerprint: str = ""
    dimensions: int = 0  # of the server's vectors, whole


EMBED_AGAIN = Step(ON_LAPTOP, "qmd embed -f", "embeds every document again, through the server")
READ_AGAIN = Step(ON_LAPTOP, "qmd update, then qmd embed", "reads the collections again and embeds what has no vector; then compare again")


def compare(index: Index, server: EmbedServer) -> Verdict:
    """Embed the sampled texts and compare. QmdError where the server gives no vectors."""
    about = server.about()
    models = about.get("models")
    facts: dict[str, Any] = {
        "model": str(models.get("embed", "")) if isinstance(models, dict) else "",
        "policy": str(about.get("prompt_policy") or ""),
        "fingerprint": str(about.get("fingerprint") or ""),
        "dimensions": server.size(),
    }
    if not index.vectors or not index.dimensions:
        embed = Step(ON_LAPTOP, "qmd update, then qmd embed", "indexes the collections and embeds what has no vector")
        return Verdict("unknown", "There is nothing to compare yet: the index holds no vectors.", [embed], **facts)
    if facts["dimensions"] != index.dimensions and not (facts["dimensions"] > index.dimensions and server.cut_to(index.dimensions)):
        sentence = (
            f"Index and server do not speak the same space: the stored vectors have {index.dimensions} numbers, those of "
            f"{facts['model'] or 'the served model'} have {facts['dimensions']}."
        )
        return Verdict("different", sentence, [EMBED_AGAIN], **facts)
    if not index.chunks:
        otherwise = replace(EMBED_AGAIN, effect="where that changes nothing: embeds every document again, through the server")
        return Verdict("unknown", f"It cannot be told: {_why_not(index)}.", [READ_AGAIN, otherwise], **facts)
    matches = match(index.chunks, server)
    kind, sentence, steps = judge(matches, facts["policy"])
    return Verdict(kind, sentence, steps, matches, **facts)


def _why_not(index: Index) -> str:
    """Why there is no vector whose text is known."""
    if not index.attached:
        return f"the {index.vectors} vectors are of documents that are no longer in the collections"
    return (
        f"of the {index.attached} vectors of documents that are there none has a text that is known for certain: vectors are missing, or "
        "this client cuts in another way"
    )


def match(chunks: Sequence[Chunk], server: EmbedServer) -> list[Match]:
    """For each chunk the form that comes nearest. The expected one alone is tried first: mostly that is all."""
    found = {chunk.key: Match(chunk, form, 0.0) for chunk in chunks for form in [expected_form(chunk.model)]}
    first = [(chunk, found[chunk.key].form, next(renderings(chunk, found[chunk.key].form))) for chunk in chunks]
    _improve(found, first, server)
    unclear = [chunk for chunk in chunks if found[chunk.key].cosine < CLEAR]
    tried = {(chunk.key, form.name, text) for chunk, form, text in first}
    others = [(chunk, form, text) for chunk in unclear for form in FORMS for text in renderings(chunk, form)]
    _improve(found, [one for one in others if (one[0].key, one[1].name, one[2]) not in tried], server)
    return list(found.values())


def _improve(found: dict[str, Match], tries: list[tuple[Chunk, Form, str]], server: EmbedServer) -> None:
    """Take those that come nearer than what is found; each text goes to the server once."""
    by_type: dict[str | None, list[tuple[Chunk, Form, str]]] = {}
    for one in tries:
        by_type.setdefault(one[1].input_type, []).append(one)
    for input_type, group in by_type.items():
        texts = list(dict.fromkeys(text for _, _, text in group))
        vectors = dict(zip(texts, server.vectors(texts, input_type), strict=True))
        for chunk, form, text in group:
            near = cosine(chunk.vector, vectors[text])
            if near > found[chunk.key].cosine + (TIE if form is not found[chunk.key].form else 0):
                found[chunk.key] = Match(chunk, form, near)


def cosine(one: Iterable[float], other: Sequence[float]) -> float:
    """Of two vectors of any length; 0 where one is empty, not finite or of another size."""
    numbers = list(one)
    if len(numbers) != len(other):
        return 0.0
    length = math.sqrt(math.fsum(x * x for x in numbers)) * math.sqrt(math.fsum(x * x for x in other))
    value = math.fsum(x * y for x, y in zip(numbers, other, strict=True)) / length if length else 0.0
    return value if math.isfinite(value) else 0.0


def judge(matches: Sequence[Match], policy: str) -> tuple[Kind, str, list[Step]]:
    """The verdict on all of them: (kind, sentence, steps)."""
    states = Counter(one.state(policy) for one in matches)
    lowest = min(one.cosine for one in matches)
    if states["ok"] == len(matches):
        if lowest < SAME:
            said = f"Index and server speak the same space, but for a small difference (cosine {lowest:.3f}): other weights of one model."
            return "same", said, []
        return "same", "Index and server speak the same space.", []
    if len(states) > 1:
        others = ", ".join(f"{count} {KINDS[state]}" for state, count in states.most_common() if state != "ok")
        said = f"The index is of several kinds: {states['ok']} of {len(matches)} vectors looked at are of the server's space, {others}."
        return "mixed", said, [EMBED_AGAIN]
    (state,) = states
    before = "Index and server have one model but not one prompt policy: the stored vectors were made from"
    if state == "made raw":
        said = f"{before} the texts as the client sent them, and the server rewrites these (PROMPT_POLICY={policy or 'native'})."
        keep = Step(ON_BOX, "PROMPT_POLICY=raw in .env, then qmdctl up", "keeps this index; but it is then so for every laptop")
        return "different", said, [EMBED_AGAIN, keep]
    if state == "made native":
        said = f"{before} texts in the model's own form, and the server leaves them as the client sends them (PROMPT_POLICY=raw)."
        keep = Step(ON_BOX, "PROMPT_POLICY=native in .env, then qmdctl up", "keeps this index; it is the default")
        return "different", said, [keep, EMBED_AGAIN]
    best = max(one.cosine for one in matches)
    why = "the vectors are another model's" if best < 0.5 else "another model, another revision of it, or a prefix that is not known here"
    said = f"Index and server do not speak the same space: in the likest of the known forms the cosine is {best:.2f} at best; {why}."
    return "different", said, [EMBED_AGAIN]
