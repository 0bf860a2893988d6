"""What a change of models makes useless on the laptops, and the commands that each of them then runs.

QMD's clients store vectors, rerank scores and query expansions under their own name of the model: none of them notices that the server's
changed. `qmd embed -f` makes every vector again; `qmd cleanup` empties the cache of scores and expansions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

EMBED_AGAIN, EMPTY_CACHE = "qmd embed -f", "qmd cleanup"


@dataclass(frozen=True)
class Consequences:
    """`changed` None: the fingerprint of one side is not known. `useless`: what no longer fits; `commands`: for each laptop."""

    before: str | None
    after: str | None
    changed: bool | None
    useless: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()

    def sentences(self) -> list[str]:
        if not self.useless:
            return [self._equal()]
        on = " and ".join(self.useless)
        return [f"{self._fingerprint()}{on} no longer fit. Then on each laptop:", *(f"    {command}" for command in self.commands)]

    def payload(self) -> dict[str, Any]:
        fingerprint = {"before": self.before, "after": self.after, "changed": self.changed}
        return {"fingerprint": fingerprint, "useless": list(self.useless), "commands": list(self.commands)}

    def _equal(self) -> str:
        if self.before and self.before == self.after:
            return f"The embedding fingerprint stays {self.before}: stored vectors and cached scores stay valid."
        return "Stored vectors and cached rerank scores stay valid; expansions of questions asked before stay those of the old model."

    def _fingerprint(self) -> str:
        if "stored vectors" not in self.useless:
            return ""
        if self.before and self.after:
            return f"The embedding fingerprint changes from {self.before} to {self.after}: "
        return "The embedding fingerprint changes: "


def consequences(
    role: str, before: str | None, after: str | None, *, cosine_before: bool, cosine_after: bool, same_model: bool = False
) -> Consequences:
    """`before`, `after`: embedding fingerprints, equal where the embedding model is not what changes.

    `cosine_…`: whether reranking is done by the embedding model. `same_model`: id and revision are as they were.
    """
    changed = None if before is None or after is None else before != after
    useless: list[str] = []
    if role == "embed" and changed is not False and not same_model:
        useless.append("stored vectors")
    by_cosine = role == "embed" and cosine_before and cosine_after and bool(useless)
    if by_cosine or (role == "rerank" and not same_model):
        useless.append("cached rerank scores")
    commands = {"stored vectors": EMBED_AGAIN, "cached rerank scores": EMPTY_CACHE}
    if role != "embed":
        changed = False if before == after else changed
    return Consequences(before, after, changed, tuple(useless), tuple(commands[what] for what in useless))
