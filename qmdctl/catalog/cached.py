"""What lies in the model cache, which of it is in use, and what of it may go."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qmdctl.errors import QmdError
from qmdctl.inside import Inside
from qmdctl.lock import FOLDER
from qmdctl.models.known import KNOWN, read_config

HISTORY = "history/*/record.json"


@dataclass(frozen=True)
class Cached:
    """One revision of a model. Bytes; `own_bytes`: what no other revision shares. `pinned`: the names that the record has for it."""

    model: str
    revision: str
    bytes: int
    own_bytes: int
    pinned: tuple[str, ...] = ()
    complete: bool = True
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        return f"{self.model}@{self.revision}"


@dataclass(frozen=True)
class Incomplete:
    """What unfinished downloads of a model left. Bytes."""

    model: str
    bytes: int


@dataclass(frozen=True)
class Cache:
    """`folder` is where it lies in the container."""

    folder: str
    free_bytes: int
    revisions: tuple[Cached, ...] = ()
    incomplete: tuple[Incomplete, ...] = ()

    def commit(self, model: str, revision: str | None) -> str | None:
        """What a name (None: main) is pinned to, or the commit itself where that is one; None where neither is recorded."""
        for one in self.revisions:
            if one.model == model and ((revision or "main") in one.pinned or one.revision == revision):
                return one.revision
        return None

    def config(self, model: str, revision: str | None = None) -> dict[str, Any] | None:
        """Its config.json: of the revision in the cache, of any there, of a folder, of the table of known models."""
        there = [one for one in self.revisions if one.model == model and one.config]
        commit = self.commit(model, revision)
        found = next((one for one in there if one.revision == commit), there[-1] if there else None)
        return dict(found.config) if found else KNOWN.get(model) or read_config(Path(model))


def read_cache(inside: Inside) -> Cache:
    """Ask. QmdError where it does not answer."""
    told = next((line for line in inside.lines("cache") if "revisions" in line), None)
    if told is None:
        raise QmdError("Nothing was told of the model cache", "its output is above")
    return Cache(
        folder=str(told["cache"]),
        free_bytes=int(told["free_bytes"]),
        revisions=tuple(
            Cached(
                model=str(one["model"]),
                revision=str(one["revision"]),
                bytes=int(one["bytes"]),
                own_bytes=int(one["own_bytes"]),
                pinned=tuple(map(str, one["pinned"])),
                complete=bool(one["complete"]),
                config=one.get("config") or {},
            )
            for one in told["revisions"]
        ),
        incomplete=tuple(Incomplete(str(one["model"]), int(one["bytes"])) for one in told["incomplete"]),
    )


@dataclass(frozen=True)
class Need:
    """A model that must stay, and why. `revision` None: which one is not known, so that all of its revisions stay.

    `newer`: of what a rollback needs, how many records of the history are newer than the one that it leads to.
    """

    model: str
    revision: str | None
    why: str
    newer: int | None = None


def needs_of(one: Cached, needs: Iterable[Need]) -> list[Need]:
    """Those for which this revision may not go; none where it may."""
    return [need for need in needs if need.model == one.model and need.revision in (None, one.revision)]


def why_kept(one: Cached, needs: Iterable[Need]) -> list[str]:
    """Why this revision may not go; empty where it may."""
    return list(dict.fromkeys(need.why for need in needs_of(one, needs)))


def history_needs(project: Path) -> list[Need]:
    """The models that a recorded state of the stack would be brought back with. A record that cannot be read keeps nothing."""
    records: list[tuple[str, list[str]]] = []
    for path in sorted((project / FOLDER).glob(HISTORY)):
        try:
            models = json.loads(path.read_bytes()).get("models") or {}
            records.append((path.parent.name, [str(name) for name in models.values() if name]))
        except (OSError, ValueError, AttributeError):
            continue
    needs = []
    for newer, (number, named) in zip(reversed(range(len(records))), records, strict=True):
        for name in named:
            model, _, revision = name.partition("@")
            needs.append(Need(model, revision or None, f"for a rollback to {number}", newer))
    return needs
