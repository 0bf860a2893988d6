"""What of the model cache may go, and letting it go."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from qmdctl.catalog.cached import Cache, Cached, Incomplete, Need, needs_of, why_kept
from qmdctl.errors import ConfigurationError, QmdError
from qmdctl.inside import Inside
from qmdctl.terminal import human_bytes, table


@dataclass(frozen=True)
class Pruning:
    """`kept`: what stays, with the reason; `others`: what a shared cache has beside, which goes only when it is named.

    `forget`: the command after which what rollbacks alone need may go; empty where that is nothing.
    """

    revisions: tuple[Cached, ...]
    incomplete: tuple[Incomplete, ...]
    kept: tuple[tuple[Cached, str], ...]
    others: tuple[str, ...]
    forget: str = ""

    @property
    def empty(self) -> bool:
        return not self.revisions and not self.incomplete

    @property
    def bytes(self) -> int:
        """At least what goes: files that two of the revisions share are counted for neither."""
        return sum(one.own_bytes for one in self.revisions) + sum(one.bytes for one in self.incomplete)

    def as_table(self) -> str:
        rows = [(one.model, one.revision[:12], human_bytes(one.own_bytes)) for one in self.revisions]
        rows += [(one.model, "incomplete", human_bytes(one.bytes)) for one in self.incomplete]
        return table(rows, ("MODEL", "REVISION", "FREES"))

    def reasons(self) -> str:
        """Why nothing goes: what stays, and what would let it go."""
        if not self.kept:
            return "Nothing to remove."
        rows = [(one.model, one.revision[:12], human_bytes(one.bytes), why) for one, why in self.kept]
        lines = ["Nothing to remove: what lies in the cache is needed.", table(rows, ("MODEL", "REVISION", "SIZE", "NEEDED"))]
        return "\n".join([*lines, *([f"What rollbacks alone need may go after: {self.forget}"] if self.forget else [])])

    def payload(self) -> dict[str, Any]:
        return {
            "revisions": [{"model": one.model, "revision": one.revision, "bytes": one.own_bytes} for one in self.revisions],
            "incomplete": [{"model": one.model, "bytes": one.bytes} for one in self.incomplete],
            "kept": [{"model": one.model, "revision": one.revision, "why": why} for one, why in self.kept],
            "not_ours": list(self.others),
            "forget": self.forget or None,
        }


def plan(cache: Cache, needs: Sequence[Need], named: Sequence[str], *, shared: bool) -> Pruning:
    """`named`: models (ID or ID@COMMIT) to look at, none: all. `shared`: other programs use the cache too, so that only what this stack
    recorded is proposed by itself. ConfigurationError for a name that is not there, and for one that is in use.
    """
    there = {one.model for one in cache.revisions} | {one.model for one in cache.incomplete}
    for name in named:
        _refuse(name, cache, needs, there)
    ours = {one.model for one in cache.revisions if one.pinned}

    def proposed(model: str, revision: str = "") -> bool:
        return _named(named, model, revision) if named else not shared or model in ours

    whys = [(one, why_kept(one, needs)) for one in cache.revisions if proposed(one.model, one.revision)]
    awaited = _awaited(needs, cache)
    rollbacks = [newer for one, why in whys if why and (newer := _newer(needs_of(one, needs)))]
    return Pruning(
        revisions=tuple(one for one, why in whys if not why),
        incomplete=tuple(one for one in cache.incomplete if proposed(one.model) and one.model not in awaited),
        kept=tuple((one, ", ".join(why)) for one, why in whys if why),
        others=tuple(sorted(there - ours)) if shared and not named else (),
        forget=_forget(min(rollbacks)) if rollbacks else "",
    )


def carry_out(pruning: Pruning, inside: Inside) -> tuple[int, list[str]]:
    """(bytes that were freed, the sentences on what could not be removed)."""
    arguments = [part for one in pruning.revisions for part in ("--remove", one.name)]
    arguments += [part for one in pruning.incomplete for part in ("--incomplete", one.model)]
    lines = list(inside.lines("cache", *arguments))
    if not lines:
        raise QmdError("Nothing was told of what was removed", "its output is above; qmdctl models shows what is left")
    return sum(int(line.get("freed_bytes") or 0) for line in lines), [str(line["error"]) for line in lines if "error" in line]


def _refuse(name: str, cache: Cache, needs: Sequence[Need], there: set[str]) -> None:
    model, _, revision = name.partition("@")
    revisions = [one for one in cache.revisions if one.model == model and one.revision.startswith(revision)]
    if model not in there or (revision and not revisions):
        raise ConfigurationError(f"{name} is not in the cache", f"qmdctl models shows what is: {', '.join(sorted(there)) or 'nothing'}")
    found = [needs_of(one, needs) for one in revisions]
    if found and all(found):
        reasons = ", ".join(dict.fromkeys(need.why for of_one in found for need in of_one))
        newer = _newer([need for of_one in found for need in of_one])
        if newer is None:
            fix = "qmdctl models use … another one first"
        else:
            fix = (
                f"{_forget(newer)}, then again; no rollback leads there then"
                if newer
                else "qmdctl up, which records what runs now; then again"
            )
        raise ConfigurationError(f"{name} is needed ({reasons})", fix)


def _newer(needs: Sequence[Need]) -> int | None:
    """How many records are newer than the last one that a rollback needs it for; None where it is needed for more than rollbacks."""
    rollbacks = [need.newer for need in needs if need.newer is not None]
    return min(rollbacks) if len(rollbacks) == len(needs) else None


def _forget(newer: int) -> str:
    return f"qmdctl history prune --keep {newer}"


def _named(named: Iterable[str], model: str, revision: str) -> bool:
    pairs = [name.partition("@") for name in named]
    return any(one == model and revision.startswith(commit) for one, _, commit in pairs)


def _awaited(needs: Iterable[Need], cache: Cache) -> set[str]:
    """Models that the stack is set to and has no complete revision of: their download goes on with what is there."""
    complete = {one.model for one in cache.revisions if one.complete and one.pinned}
    return {need.model for need in needs} - complete
