"""When `qmdctl keys add` says that a key works at once. FAKE: the engine."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from qmdctl.commands.keys import service_asks
from tests.qmdctl.conftest import Run
from tests.qmdctl.projects import settings_of


@pytest.mark.parametrize(
    ("state", "environment", "asks"),
    [("running", {"API_KEYS_FILE": "/run/secrets/api_keys"}, True), ("running", {"API_KEYS_FILE": ""}, False), ("exited", None, False)],
)
def test_a_key_works_at_once_only_where_the_service_asks(
    folder: Path, monkeypatch: pytest.MonkeyPatch, state: str, environment: dict[str, str] | None, asks: bool
) -> None:
    class FakeEngine:
        @classmethod
        def connect(cls) -> type[FakeEngine]:
            return cls

        @staticmethod
        def containers(project: str) -> dict[str, SimpleNamespace]:
            there = environment or {"API_KEYS_FILE": "/run/secrets/api_keys"}
            return {"embed": SimpleNamespace(running=state == "running", environment=there)}

    monkeypatch.setattr("qmdctl.engine.Engine", FakeEngine)
    assert service_asks(settings_of(folder)) is asks


def test_without_an_engine_a_key_is_not_said_to_work_at_once(qmdctl: Run, folder: Path) -> None:
    (folder / ".env").write_text("API_KEYS_FILE=./secrets/api_keys\n")
    qmdctl("-C", str(folder), "keys", "add", "ann")
    assert "It works after: qmdctl up." in qmdctl("-C", str(folder), "keys", "add", "ben").stderr
