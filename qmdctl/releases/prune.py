"""Removing old records and the tags that keep their images."""

from __future__ import annotations

from dataclasses import dataclass

from qmdctl.engine import Engine
from qmdctl.env_file import EnvFile
from qmdctl.releases import images
from qmdctl.releases.record import History, Record

KEEP = 10  # records beyond which an upgrade says how to prune


@dataclass(frozen=True)
class Pruned:
    """`untagged`: kept tags that were removed; `notes`: images that stay, and why."""

    numbers: list[int]
    untagged: list[str]
    notes: list[str]


def old(history: History, keep: int, env: EnvFile) -> list[Record]:
    """All but the last `keep`; never the current one, nor one whose image .env names."""
    named = {int(match[1]) for value in env.values.values() if (match := images.KEPT.fullmatch(value))}
    current = history.current
    return [one for one in history.records[: max(0, len(history.records) - keep)] if one != current and one.number not in named]


def prune(history: History, records: list[Record], engine: Engine) -> Pruned:
    """Remove them. An image goes with its last name; one that a registry's name still leads to stays, and a note says so."""
    untagged, notes = [], []
    for record in records:
        for image in {one.kept: one for one in record.images.values() if one.kept}.values():
            refused = images.untag(engine, image.kept)
            if refused:
                notes.append(f"{image.kept} stays: {refused}")
            else:
                untagged.append(image.kept)
        history.remove(record)
    used = {image.id for record in history.records for image in record.images.values()}
    gone = {image.id: image for record in records for image in record.images.values() if image.id not in used}
    for image in gone.values():
        if images.identity(engine, image.name)[0] == image.id:
            notes.append(f"{image.name} stays under its own name; if nothing else needs it: docker image rm {image.name}")
    return Pruned([record.number for record in records], untagged, notes)
