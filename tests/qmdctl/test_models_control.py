"""A switch through the service's control socket, as qmdctl asks for it. FAKE: the service's lines, the engine, the proving requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qmdctl.catalog.machine import StackMachine
from qmdctl.catalog.roles import ROLES
from qmdctl.catalog.switch import ControlSwitch, SwitchFailed
from qmdctl.errors import QmdError
from tests.qmdctl.catalogs import Scripted, Told
from tests.qmdctl.projects import settings_of

FIRST, SECOND = "org/first", "org/second"


def test_wrong_answers_of_the_new_model_bring_the_old_one_back() -> None:
    done: dict[str, Any] = {"done": True, "state": "serving"}
    control = Scripted([{"phase": "loading"}, done], [done])

    def prove() -> None:
        raise QmdError("embedding: the numbers are wrong")

    before, after = {ROLES["embed"]: (FIRST, "a" * 40)}, {ROLES["embed"]: (SECOND, "b" * 40)}
    with pytest.raises(SwitchFailed, match=r"the numbers are wrong\. The old one is served again"):
        ControlSwitch(control, Told(), prove, 90.0).run(before, after)
    assert [asked[3:] for asked in control.asked] == [
        ("--timeout", "90.0", "--embed-model", SECOND, "--embed-revision", "b" * 40),
        ("--embed-model", FIRST, "--embed-revision", "a" * 40),
    ], "the limit is not one of going back"


def test_where_going_back_fails_the_way_back_is_named() -> None:
    control = Scripted([{"done": True, "state": "serving"}], [{"error": "No memory is left.", "code": "engine_failed"}])

    def prove() -> None:
        raise QmdError("embedding: the numbers are wrong")

    models = {ROLES["embed"]: (FIRST, "a" * 40)}
    with pytest.raises(SwitchFailed, match=r"the numbers are wrong, and going back failed as well: No memory is left\.") as caught:
        ControlSwitch(control, Told(), prove).run(models, models)
    assert caught.value.fix.startswith("qmdctl up")


def test_the_limit_of_the_command_is_that_of_the_switch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    control = Scripted([{"done": True, "state": "serving"}])
    monkeypatch.setattr("qmdctl.catalog.machine.Running", lambda compose: control)
    monkeypatch.setattr(StackMachine, "port_stays_open", lambda self, role: True)
    monkeypatch.setattr(StackMachine, "prove", lambda self, models: None)
    no_engine: Any = None
    models = {ROLES["embed"]: (FIRST, None)}
    StackMachine(settings_of(tmp_path), no_engine, Told(), no_engine, 90.0).switch(ROLES["embed"], models, models, {})
    assert control.asked == [("control", "switch", "--attended", "--timeout", "90.0", "--embed-model", FIRST)]
