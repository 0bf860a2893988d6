"""Which volumes `down --volumes` and `--forget` remove: the stack's own, also those that a restore made without Compose's labels.

FAKE: the engine's client, which knows volumes alone, and `docker volume rm`, which is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from docker.errors import NotFound

from qmdctl.commands.down import remove_volumes
from qmdctl.compose_files import volume_names
from qmdctl.engine import PROJECT_LABEL, VOLUME_LABEL, Engine
from qmdctl.terminal import Terminal
from tests.qmdctl.projects import settings_of


@dataclass
class Volume:
    name: str
    attrs: dict[str, Any]


class Volumes:
    """FAKE: what is asked of docker-py's collection of volumes. `labelled`: made by Compose, {name: name in its file}."""

    def __init__(self, labelled: dict[str, str], plain: list[str]) -> None:
        self.there = {name: {PROJECT_LABEL: name.split("_")[0], VOLUME_LABEL: short} for name, short in labelled.items()}
        self.there |= {name: {} for name in plain}

    def get(self, name: str) -> Volume:
        if name not in self.there:
            raise NotFound(name)
        return Volume(name, {"Labels": self.there[name] or None})

    def list(self, filters: dict[str, str]) -> Sequence[Volume]:
        key, _, value = filters["label"].partition("=")
        return [Volume(name, {"Labels": labels}) for name, labels in self.there.items() if labels.get(key) == value]


@dataclass
class Client:
    """FAKE: docker-py's."""

    volumes: Volumes


LABELLED = {"qmd_caches": "caches", "qmd_ts-embed-run": "ts-embed-run", "qmd_older": "older", "other_models": "models"}
RESTORED = ["qmd_models", "qmd_ts-embed", "qmd_notes", "models", "qmd2_models"]


@pytest.mark.parametrize(
    ("models", "logins", "removed"),
    [
        (True, False, {"qmd_models", "qmd_caches", "qmd_older"}),
        (False, True, {"qmd_ts-embed", "qmd_ts-embed-run"}),
        (True, True, {"qmd_models", "qmd_caches", "qmd_older", "qmd_ts-embed", "qmd_ts-embed-run"}),
        (False, False, set()),
    ],
)
def test_restored_volumes_go_and_no_neighbours_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: bool, logins: bool, removed: set[str]
) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr("qmdctl.process.run", lambda command, **options: ran.append(command))
    client: Any = Client(Volumes(LABELLED, RESTORED))
    assert set(remove_volumes(Engine(client, "fake"), Terminal(), settings_of(tmp_path), models, logins)) == removed
    assert [(command[:3], set(command[3:])) for command in ran] == ([(["docker", "volume", "rm"], removed)] if removed else [])


@pytest.mark.parametrize("order", [("mine.yaml", "later.yaml"), ("later.yaml", "mine.yaml")])
def test_a_volume_that_belongs_to_another_stack_is_not_taken_for_the_project_s(tmp_path: Path, order: tuple[str, str]) -> None:
    """As Compose merges the files: what one of them says of a volume stays said."""
    (tmp_path / "mine.yaml").write_text("volumes: {models: {external: true}, caches: {name: shared-caches}, own: {}}\n")
    (tmp_path / "later.yaml").write_text("volumes: {models: , caches: {}, own: }\n")
    assert volume_names([tmp_path / name for name in order]) == ["own"]
