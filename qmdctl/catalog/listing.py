"""`qmdctl models list`: three tables, or one JSON document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qmdctl.catalog.cached import Cache, Need, why_kept
from qmdctl.catalog.fits import Fit
from qmdctl.catalog.roles import Role, configured
from qmdctl.catalog.served import Served
from qmdctl.models.plan import GB
from qmdctl.settings import Settings
from qmdctl.terminal import human_bytes, table

Fits = Sequence[tuple[Role, str, int | None, Fit]]


def as_text(served: Mapping[str, Served], cache: Cache | None, needs: Sequence[Need], fits: Fits) -> str:
    parts = ["Served", _served_table(served)]
    if cache is not None:
        parts += ["", f"In the cache ({cache.folder}, {human_bytes(cache.free_bytes)} free)", _cache_table(cache, needs)]
    return "\n".join([*parts, "", "Known models, each in its place beside the others that are set now", _fits_table(fits)])


def payload(served: Mapping[str, Served], cache: Cache | None, needs: Sequence[Need], fits: Fits, notes: Sequence[str]) -> dict[str, Any]:
    kept = None
    if cache is not None:
        revisions = [
            {
                "model": one.model,
                "revision": one.revision,
                "bytes": one.bytes,
                "complete": one.complete,
                "pinned": list(one.pinned),
                "needed": why_kept(one, needs),
            }
            for one in cache.revisions
        ]
        incomplete = [{"model": one.model, "bytes": one.bytes} for one in cache.incomplete]
        kept = {"folder": cache.folder, "free_bytes": cache.free_bytes, "revisions": revisions, "incomplete": incomplete}
    known = [{"role": role.name, "model": model, "weights_bytes": size, **fit.payload()} for role, model, size, fit in fits]
    return {"served": [one.payload() for one in served.values()], "cache": kept, "known": known, "notes": list(notes)}


def differences(settings: Settings, served: Mapping[str, Served]) -> list[str]:
    """Where a running service serves another model than .env names: a switch that was cut off, or .env edited since."""
    notes = []
    for one in served.values():
        model, _ = configured(settings, one.role)
        if one.running and model and one.id and one.id != model:
            fix = f"`qmdctl up` changes to it, `qmdctl models use {one.role.name} {one.id}` keeps what is served"
            notes.append(f"{one.role.name}: {one.id} is served, and .env says {one.role.key}={model}: {fix}.")
    return notes


def _served_table(served: Mapping[str, Served]) -> str:
    rows = [
        (one.role.name, one.id or "-", (one.revision or "")[:12], one.dtype or "", one.fingerprint or "", one.state, one.url)
        for one in served.values()
    ]
    return table(rows, ("", "MODEL", "REVISION", "PRECISION", "FINGERPRINT", "STATE", "URL"))


def _cache_table(cache: Cache, needs: Sequence[Need]) -> str:
    rows = [
        (one.model, one.revision[:12], human_bytes(one.bytes), "; ".join(why_kept(one, needs)) or ("" if one.complete else "no weights"))
        for one in cache.revisions
    ]
    rows += [(one.model, "incomplete", human_bytes(one.bytes), "a download that stopped") for one in cache.incomplete]
    return table(rows, ("MODEL", "REVISION", "SIZE", "NEEDED FOR")) if rows else "nothing"


def _fits_table(fits: Fits) -> str:
    rows = [(role.name, model, human_bytes(size) if size else "?", _fit_text(fit)) for role, model, size, fit in fits]
    reasons = dict.fromkeys(fit.sentence for *_, fit in fits if fit.fits is None)
    return "\n".join([table(rows, ("", "MODEL", "WEIGHTS", "IN MEMORY")), *(f"Unknown where {reason}." for reason in reasons)])


def _fit_text(fit: Fit) -> str:
    """ "fits: 18.4 of 116.0 GB planned"."""
    if fit.fits is None or fit.planned_bytes is None:
        return "unknown"
    there = f" of {fit.available_bytes / GB:.1f}" if fit.available_bytes is not None else ""
    numbers = f"{fit.planned_bytes / GB:.1f}{there} GB"
    if fit.fits:
        return f"fits: {numbers} planned in all"
    over = fit.available_bytes is not None and fit.planned_bytes > fit.available_bytes
    return f"does not fit: {numbers} planned in all" if over else f"does not fit: {fit.sentence}"
