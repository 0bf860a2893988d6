"""`qmdctl resume` of both services: vLLM's container is started whatever becomes of the waiting. FAKE: the engine, Compose, the service."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qmdctl.commands import resume
from qmdctl.engine import Engine
from qmdctl.errors import InterruptedByUser, QmdError, WaitTimeoutError
from qmdctl.terminal import Terminal
from tests.qmdctl.containers import container
from tests.qmdctl.projects import settings_of


@pytest.mark.parametrize(
    ("verb", "end", "kind"),
    [
        ("load_embed", WaitTimeoutError("it takes longer", "again"), WaitTimeoutError),
        ("load_embed", KeyboardInterrupt(), InterruptedByUser),
        ("begin_loading", KeyboardInterrupt(), InterruptedByUser),
        ("begin_loading", QmdError("no memory"), QmdError),
    ],
)
def test_vllm_is_started_although_embed_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, end: BaseException, kind: type[BaseException]
) -> None:
    done: list[str] = []

    def ends(*_: object) -> None:
        done.append(verb)
        raise end

    settings = settings_of(tmp_path)
    there = {"embed": container(health="healthy"), "vllm": container("vllm", "exited")}
    engine: Any = SimpleNamespace(containers=lambda _: there)
    call: Any = SimpleNamespace(
        output=lambda _: Terminal(),
        settings=lambda need_env: settings,
        compose=lambda _: SimpleNamespace(run=lambda *arguments: done.append(" ".join(arguments[-2:]))),
        state=lambda: None,
    )
    monkeypatch.setattr(Engine, "connect", lambda: engine)
    monkeypatch.setattr(resume, "invocation", lambda _: call)
    monkeypatch.setattr(resume, "loading_services", lambda *_: ["embed", "vllm"])
    monkeypatch.setattr("qmdctl.startup.estimate.make_estimate", lambda *_: None)
    monkeypatch.setattr(resume, "begin_loading", lambda *_: done.append("begin_loading"))
    monkeypatch.setattr(resume, verb, ends)
    context: Any = None
    with pytest.raises(kind):
        resume.resume(context)
    before = ["begin_loading", "start vllm"]
    assert done == [*before, *(["load_embed"] if verb == "load_embed" else [])], "an embed that is paused is not waited for by vLLM"
