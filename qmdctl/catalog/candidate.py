"""A model that is asked for: what the hub and its small files tell of it, before any of its weights is downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qmdctl.catalog.roles import Wanted
from qmdctl.errors import ConfigurationError, MissingError, QmdError
from qmdctl.inside import Inside
from qmdctl.terminal import human_bytes

# Codes of the embed service's ModelError → what they are to a user of qmdctl.
MISSING = ("gated", "unauthorized", "no_disk")
CONFIGURATION = ("not_found", "unsupported", "no_safetensors", "bad_files")
KINDS = {
    "embedding": "an embedding model",
    "yes_no": "a reranker that judges by yes and no",
    "classifier": "a reranker with one score",
    "cosine": "the embedding model again, which reranks by cosine",
    "generation": "a model that generates text",
}


@dataclass(frozen=True)
class Candidate:
    """`revision` is a commit of the hub, or of a folder "local-" and a hash. Sizes in bytes; `config` is its config.json.

    `pinned`: the names (main, a branch, a tag) that lead to this commit by the record of downloads.
    """

    wanted: Wanted
    revision: str
    where: str  # hub, cache, folder
    architecture: str
    kind: str
    total_bytes: int
    missing_bytes: int
    free_bytes: int
    config: Mapping[str, Any] = field(repr=False)
    dimensions: int = 0
    fingerprint: str | None = None
    recognised: bool = True
    pinned: tuple[str, ...] = ()

    @property
    def commit(self) -> str | None:
        """What .env pins it to; None for a folder."""
        return None if self.wanted.folder else self.revision

    @property
    def name(self) -> str:
        """As the downloader and the service take it."""
        return self.wanted.id if self.wanted.folder else f"{self.wanted.id}@{self.revision}"

    def sentences(self) -> list[str]:
        """What was found, one sentence a step, in the order in which it was looked at."""
        place = {"hub": "at the hub, and open to this machine", "cache": "in the cache, whole", "folder": "a folder"}[self.where]
        size = f", {self.dimensions} dimensions" if self.kind == "embedding" else ""
        padded = "" if self.recognised else "; its architecture has no row of its own: it runs on sentence-transformers, padded"
        come = f"{human_bytes(self.missing_bytes)} to be downloaded, {human_bytes(self.free_bytes)} free" if self.missing_bytes else ""
        return [
            f"{self.wanted.id} is {place}: revision {self.revision[:12]}",
            f"architecture {self.architecture}, {KINDS.get(self.kind, self.kind)}{size}{padded}",
            f"weights in safetensors, {human_bytes(self.total_bytes)} in all" + (f"; {come}" if come else "; nothing to download"),
            *self._doubts(),
        ]

    def _doubts(self) -> list[str]:
        if self.kind == "yes_no" and "rerank" not in self.wanted.id.lower():
            return ["nothing in its name says that it was trained to rerank: a chat model's yes or no is worth little (docs/models.md)"]
        if self.kind == "generation" and "rerank" in self.wanted.id.lower():
            return ["its name says that it is a reranker: as a model that generates text it is worth little"]
        return []


def inspect(inside: Inside, wanted: Wanted, *, newest: bool) -> Candidate:
    """Ask. `newest`: the revision's present commit at the hub, whatever was pinned. Raises a QmdError with the service's own sentence."""
    flags = ["--newest"] if newest and not wanted.folder else []
    lines = list(inside.lines("inspect", "--role", wanted.role.name, *flags, wanted.text))
    told = next((line for line in reversed(lines) if "model" in line), None)
    if told is None:
        raise QmdError(f"Nothing was told of {wanted.id}", "its output is above")
    if "error" in told:
        raise refused(str(told["error"]), str(told.get("code", "")))
    return Candidate(
        wanted=wanted,
        revision=str(told["revision"]),
        where=str(told["where"]),
        architecture=str(told["architecture"]),
        kind=str(told["kind"]),
        total_bytes=int(told["total_bytes"]),
        missing_bytes=int(told["missing_bytes"]),
        free_bytes=int(told["free_bytes"]),
        config=told.get("config") or {},
        dimensions=int(told.get("dimensions") or 0),
        fingerprint=told.get("fingerprint"),
        recognised=bool(told.get("recognised", True)),
        pinned=tuple(map(str, told.get("pinned") or ())),
    )


def refused(sentence: str, code: str) -> QmdError:
    """The service's sentence, which names the fix, with the exit status of its kind."""
    kind = MissingError if code in MISSING else ConfigurationError if code in CONFIGURATION else QmdError
    return kind(f"{sentence} Nothing was changed.")
