"""Pause, resume and switch on the real service: nothing is lost, and what ends is really gone."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.service.conftest import TEXTS, Load, embed, metric, rerank
from tests.support.checkpoints import checkpoint
from tests.support.service import ROOT, ServiceProcess, minilm_path, poll

Start = Callable[..., ServiceProcess]
Lines = list[dict[str, Any]]
MANY = [f"{n} {text}" for n in range(40) for text in TEXTS]  # all different: equal texts are computed once
MINILM, QWEN = 384, 64  # dimensions


class Box:
    """A service with a control socket and a home of its own."""

    def __init__(self, folder: Path, start: Start) -> None:
        self.folder, self._start = folder, start
        self.socket = folder / "c" / "control.sock"

    def start(self, **environment: str) -> ServiceProcess:
        self.service = self._start(CONTROL_SOCKET=str(self.socket), HOME=str(self.folder / "home"), **environment)
        return self.service

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "embed_service", "control", *arguments]

    def run(self, *arguments: str) -> tuple[int, Lines]:
        """(exit status, lines) of `embed-service control`."""
        done = subprocess.run(self.command(*arguments), cwd=ROOT, env=self.service.environment, capture_output=True, text=True, timeout=120)
        assert not done.stderr, done.stderr
        return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]

    def last(self, *arguments: str) -> dict[str, Any]:
        """The last line of a command that succeeds."""
        status, lines = self.run(*arguments)
        assert status == 0, lines
        return lines[-1]


@pytest.fixture
def box(breakable: Start, tmp_path: Path) -> Box:
    (tmp_path / "home").mkdir()
    return Box(tmp_path, breakable)


def engine_pid(service: ServiceProcess) -> int | None:
    pid: int | None = service.health()[1]["engine"]["pid"]
    return pid


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_a_pause_answers_what_is_in_flight_and_ends_the_engine(box: Box) -> None:
    service = box.start(LOAD_WAIT_SECONDS="0.5")
    pid = engine_pid(service)
    assert pid
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(embed, service, MANY)
        poll(lambda: metric(service, "embed_queued_tokens") > 0, 30, "work in the queue", every=0.005)
        status, lines = box.run("pause")
        assert (status, lines[-1]["done"], lines[-1]["state"]) == (0, True, "paused")
        assert not alive(pid)
        assert answer.result().shape == (len(MANY), MINILM)
    assert "draining" in [line.get("phase") for line in lines]
    status, body = service.health()
    assert (status, body["status"], body["phase"], body["engine"]["pid"]) == (503, "paused", "paused", None)
    with service.client() as client:
        refused = client.post("/v1/embeddings", json={"input": "a"})
        assert refused.status_code == 503 and refused.headers["retry-after"] and "qmdctl resume" in refused.json()["error"]["message"]
        assert client.post("/tokenize", json={"input": "a"}).status_code == 200  # tokenisers stay
    assert metric(service, 'embed_unloaded{cause="paused"}') == 1
    assert box.last("pause")["state"] == "paused"
    assert box.last("resume")["state"] == "serving"
    assert box.last("resume")["state"] == "serving"
    assert len(embed(service, ["again"])) == 1
    assert service.health()[1]["engine"]["restarts"] == 0  # ended on purpose
