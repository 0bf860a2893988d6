"""A container whose models a switch chose, as `up` and `upgrade` see it. FAKE: Compose, whose `exec` prints the service's status."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from qmdctl.catalog.served import is_switched
from qmdctl.commands import up
from qmdctl.engine import Container
from qmdctl.releases import switch
from tests.qmdctl.containers import container
from tests.qmdctl.projects import settings_of

OLD, NEW = "org/old", "org/new"
COMMIT = "c" * 40


@dataclass
class FakeCompose:
    """FAKE: what the service says of itself; the commands that change something are kept."""

    switched: bool
    folder: Path
    ran: list[tuple[str, ...]] = field(default_factory=list)

    def command(self, *arguments: str) -> list[str]:
        line = {"state": "serving", "switched": self.switched, "models": {"embed": NEW, "rerank": OLD}, "revisions": {"embed": COMMIT}}
        return [sys.executable, "-c", f"print({json.dumps(json.dumps(line))})"]

    def environment(self) -> dict[str, str]:
        return {}

    def run(self, *arguments: str) -> None:
        self.ran.append(arguments)


@dataclass
class FakeEngine:
    """FAKE: containers by service."""

    now: dict[str, Container]

    def containers(self, project: str) -> dict[str, Container]:
        return self.now


def embed(**fields: Any) -> Container:
    return container(health="healthy", environment={"EMBED_MODEL": OLD, "RERANK_MODEL": OLD}, **fields)


@pytest.mark.parametrize(
    ("switched", "before", "services", "anew"),
    [
        (True, "embed", ["embed"], True),
        (False, "embed", ["embed"], False),
        (True, "one that Compose has replaced", ["embed"], False),
        (True, "embed", ["vllm"], False),
    ],
)
def test_up_makes_a_switched_container_anew_that_compose_takes_for_current(
    tmp_path: Path, switched: bool, before: str, services: list[str], anew: bool
) -> None:
    compose: Any = FakeCompose(switched, tmp_path)
    engine: Any = FakeEngine({"embed": embed()})
    settings = settings_of(tmp_path)
    up._make_switched_anew(engine, compose, settings, services, {"embed": embed(id=before)} if before != "embed" else engine.now)
    assert [("--force-recreate" in one, one[-1]) for one in compose.ran] == ([(True, "embed")] if anew else [])


def test_a_container_that_does_not_run_is_not_asked(tmp_path: Path) -> None:
    compose: Any = FakeCompose(True, tmp_path)
    assert not is_switched(compose, embed(state="exited"))
    assert is_switched(compose, embed())


@pytest.mark.parametrize(
    ("switched", "env", "drifted"),
    [
        (True, {"EMBED_MODEL": NEW, "EMBED_REVISION": COMMIT, "RERANK_MODEL": OLD}, False),
        (True, {"EMBED_MODEL": OLD, "RERANK_MODEL": OLD}, True),  # put back
        (True, {"EMBED_MODEL": "org/third", "RERANK_MODEL": OLD}, True),
        (True, {"EMBED_MODEL": NEW, "EMBED_REVISION": "d" * 40, "RERANK_MODEL": OLD}, True),
        (True, {"EMBED_MODEL": NEW, "EMBED_REVISION": COMMIT, "RERANK_MODEL": OLD, "LOG_LEVEL": "debug"}, True),
        (False, {"EMBED_MODEL": NEW, "RERANK_MODEL": OLD}, True),
        (False, {"EMBED_MODEL": OLD, "RERANK_MODEL": OLD}, False),
    ],
)
def test_what_a_switch_changed_is_not_taken_for_an_edit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, switched: bool, env: dict[str, str], drifted: bool
) -> None:
    """FAKE as well: Compose's hash, which is the settings that the container was made with."""
    settings = settings_of(tmp_path, env, ["embed"])
    keys = ("EMBED_MODEL", "EMBED_REVISION", "RERANK_MODEL", "RERANK_REVISION", "LOG_LEVEL")
    made = {**dict.fromkeys(keys, ""), "EMBED_MODEL": OLD, "RERANK_MODEL": OLD, "LOG_LEVEL": settings_of(tmp_path)["LOG_LEVEL"]}
    settings = settings_of(tmp_path, env, ["embed"])

    def changed(compose: object, hashes: object, environment: dict[str, str] | None = None) -> bool:
        given = {key: settings[key] for key in keys} | (environment or {})
        return given != made

    own: Any = FakeCompose(switched, tmp_path)
    monkeypatch.setattr(switch, "changed", changed)
    assert switch.is_drifted(settings, own, {"embed": embed()}) is drifted
