"""Pause, resume and switch on the real service: nothing is lost, and what ends is really gone."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.service.conftest import QUICK, TEXTS, Load, embed, metric, rerank
from tests.support.checkpoints import checkpoint
from tests.support.service import ROOT, ServiceProcess, minilm_path, poll

Lines = list[dict[str, Any]]
MANY = [f"{n} {text}" for n in range(40) for text in TEXTS]  # all different: equal texts are computed once
MINILM, QWEN = 384, 64  # dimensions
LONG = 300.0  # seconds, on a machine that does much else

pytestmark = pytest.mark.timeout(900)


class Box:
    """A service with a control socket and a home of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[ServiceProcess] = []
        self.socket = folder / "c" / "control.sock"

    def start(self, **environment: str) -> ServiceProcess:
        own = {"CONTROL_SOCKET": str(self.socket), "HOME": str(self.folder / "home")}
        self.service = ServiceProcess({**QUICK, **own, **environment}, self.folder / f"service{len(self.started)}.log").start()
        self.started.append(self.service)
        self.service.wait_healthy(LONG)
        return self.service

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "embed_service", "control", *arguments]

    def run(self, *arguments: str) -> tuple[int, Lines]:
        """(exit status, lines) of `embed-service control`."""
        done = subprocess.run(
            self.command(*arguments), cwd=ROOT, env=self.service.environment, capture_output=True, text=True, timeout=LONG
        )
        assert not done.stderr, done.stderr
        return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]

    def begin(self, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self.command(*arguments), cwd=ROOT, env=self.service.environment, stdout=subprocess.DEVNULL)

    def last(self, *arguments: str) -> dict[str, Any]:
        """The last line of a command that succeeds."""
        status, lines = self.run(*arguments)
        assert status == 0, lines
        return lines[-1]


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    (tmp_path / "home").mkdir()
    box = Box(tmp_path)
    yield box
    for service in box.started:
        service.__exit__(None, None, None)


def engine_pid(service: ServiceProcess) -> int | None:
    pid: int | None = service.health()[1]["engine"]["pid"]
    return pid


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_a_pause_loses_nothing_and_a_resume_answers_what_waited(box: Box) -> None:
    service = box.start()
    pid = engine_pid(service)
    assert pid
    load = Load(service)
    try:
        poll(lambda: load.answered >= 5, LONG, "the load to run")
        with ThreadPoolExecutor(1) as pool:
            large = pool.submit(embed, service, MANY)
            poll(lambda: metric(service, "embed_queued_tokens") > 0, LONG, "work in the queue", every=0.005)
            status, lines = box.run("pause")
            assert (status, lines[-1]["done"], lines[-1]["state"]) == (0, True, "paused")
            assert not alive(pid)
            assert large.result().shape == (len(MANY), MINILM)
        assert "draining" in [line.get("phase") for line in lines]
        code, body = service.health()
        assert (code, body["status"], body["phase"], body["engine"]["pid"]) == (503, "paused", "paused", None)
        assert metric(service, 'embed_unloaded{cause="paused"}') == 1
        answered = load.answered
        assert box.last("pause")["state"] == "paused"
        assert box.last("status")["requests"] == 0
        assert box.run("switch", "--rerank-model", "elsewhere")[1][-1]["code"] == "paused"

        resuming = box.begin("resume")
        poll(lambda: box.last("status")["state"] == "loading", LONG, "a load")
        resuming.send_signal(signal.SIGINT)
        assert resuming.wait(LONG) == 130
        assert box.last("pause")["state"] == "paused"  # while it loads: the load ends
        assert engine_pid(service) is None and load.answered == answered

        assert [line.get("phase") for line in box.run("resume")[1]].count("loading") == 1
        poll(lambda: load.answered >= answered + 10, LONG, "what waited to be answered")
        assert box.last("resume")["state"] == "serving"
    finally:
        load.stop()
    assert load.wrong == []
    body = service.wait_healthy()
    assert (body["status"], body["engine"]["restarts"]) == ("ok", 0)  # ended on purpose
    assert metric(service, 'embed_unloaded{cause="paused"}') == 0


def test_idle_models_leave_the_device_and_come_back_for_a_request(box: Box) -> None:
    service = box.start(IDLE_UNLOAD_MINUTES="0.02", LOAD_WAIT_SECONDS="0.2")

    def idle() -> bool:
        return bool(service.health()[1]["status"] == "idle")  # and looking at it does not count as use

    pid = engine_pid(service)
    poll(idle, LONG, "idleness")
    assert service.health()[0] == 200
    assert pid and not alive(pid)
    assert box.last("status")["state"] == "idle"
    with ThreadPoolExecutor(8) as pool:  # they wait for longer than LOAD_WAIT_SECONDS: the models are certain to come
        vectors = list(pool.map(lambda text: embed(service, [text]), TEXTS[:8]))
    assert {v.shape for v in vectors} == {(1, MINILM)}
    poll(idle, LONG, "idleness again")
    assert box.last("resume")["state"] == "serving"
    poll(idle, LONG, "idleness after a resume that nobody's request brought about")
    status, lines = box.run("switch", "--rerank-model", "elsewhere", "--timeout", "0.000001")
    assert (status, lines[-1]["code"]) == (1, "timeout")
    assert embed(service, TEXTS[:1]).shape == (1, MINILM)
    poll(idle, LONG, "idleness after a switch that was over before it began")
    assert box.last("pause")["state"] == "paused"
    with service.client() as client:
        refused = client.post("/v1/embeddings", json={"input": "a"})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "30")
        assert "qmdctl resume" in refused.json()["error"]["message"]
        assert client.post("/tokenize", json={"input": "a"}).status_code == 200  # tokenizers stay
    assert service.health()[1]["status"] == "paused"


class Searching:
    """Clients that embed and rerank until `stop`. `dimensions` counts the vectors' by the model that the answer names."""

    def __init__(self, service: ServiceProcess) -> None:
        self.service = service
        self.dimensions: Counter[tuple[str, int]] = Counter()
        self.wrong: list[str] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(3)]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int) -> None:
        while not self._stop.is_set():
            try:
                if number == 0:
                    rerank(self.service, TEXTS[0], TEXTS)
                    continue
                answer = httpx.post(f"{self.service.url}/v1/embeddings", json={"input": TEXTS}, timeout=LONG)
                answer.raise_for_status()
                found = {len(item["embedding"]) for item in answer.json()["data"]}
                assert len(found) == 1, found
                self.dimensions[Path(answer.headers["x-model"]).name, found.pop()] += 1
            except Exception as error:
                self.wrong.append(f"client {number}: {error!r}")

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model whose weights are not numbers: it loads, and fails its canary."""
    from safetensors.numpy import load_file, save_file

    folder = tmp_path_factory.mktemp("models") / "damaged"
    shutil.copytree(minilm_path(), folder)
    file = folder / "model.safetensors"
    save_file({name: np.full_like(array, np.nan) if array.dtype.kind == "f" else array for name, array in load_file(file).items()}, file)
    return str(folder)


def test_a_switch_keeps_the_port_and_outlives_a_restart(box: Box) -> None:
    qwen = str(checkpoint("qwen3-embedding"))
    service = box.start()
    before = service.health()[1]
    searching = Searching(service)
    try:
        poll(lambda: searching.dimensions.total() > 3, LONG, "answers")
        done = box.last("switch", "--embed-model", qwen)
        assert done["models"] == {"embed": qwen, "rerank": qwen}  # it reranked by cosine, and still does
        assert done["state"] == "serving" and done["fingerprint"] != before["fingerprint"]
        poll(lambda: searching.dimensions["qwen3-embedding", QWEN] > 3, LONG, "answers of the new model")
    finally:
        searching.stop()
    assert searching.wrong == []
    assert set(searching.dimensions) == {(Path(minilm_path()).name, MINILM), ("qwen3-embedding", QWEN)}
    body = service.health()[1]
    assert (body["models"], body["fingerprint"]) == (done["models"], done["fingerprint"])
    assert box.last("status")["switched"] is True
    with service.client() as client:
        names = [model["id"] for model in client.get("/v1/models").json()["data"]]
    assert qwen in names and minilm_path() not in names

    assert service.terminate() == 0
    again = box.start()  # as `docker restart` does
    assert (again.health()[1]["models"], embed(again, ["a"]).shape) == (done["models"], (1, QWEN))
    assert again.terminate() == 0
    reranker = str(checkpoint("qwen3-reranker"))
    edited = box.start(RERANK_MODEL=reranker)  # its owner named another model meanwhile
    assert edited.health()[1]["models"] == {"embed": minilm_path(), "rerank": reranker}
    assert box.last("status")["switched"] is False
    assert edited.terminate() == 0
    put_back = box.start()
    assert put_back.health()[1]["models"]["embed"] == minilm_path(), "not what was once switched to"


def test_a_switch_that_fails_or_is_left_goes_back(box: Box, damaged: str) -> None:
    service = box.start()
    before = service.health()[1]
    searching = Searching(service)
    try:
        for role, model, code in (("rerank", "/no/such/folder", "not_found"), ("embed", damaged, "engine_failed")):
            status, lines = box.run("switch", f"--{role}-model", model)
            assert (status, lines[-1]["code"], lines[-1]["state"], lines[-1]["models"]) == (1, code, "serving", before["models"])
            assert "going_back" in [line.get("phase") for line in lines]

        switching = box.begin("switch", "--embed-model", str(checkpoint("qwen3-embedding")))
        poll(lambda: box.last("status")["state"] == "loading", LONG, "the other model to load")
        assert box.run("pause")[1][-1]["code"] == "busy"
        switching.send_signal(signal.SIGINT)
        assert switching.wait(LONG) == 130
        poll(lambda: not box.last("status")["under_way"], LONG, "the models before")
        assert box.run("switch", "--embed-model", damaged, "--timeout", "0.001")[1][-1]["code"] == "timeout"
        answered = searching.dimensions.total()
        poll(lambda: searching.dimensions.total() > answered + 3, LONG, "answers")
    finally:
        searching.stop()
    assert searching.wrong == []
    assert set(searching.dimensions) == {(Path(minilm_path()).name, MINILM)}
    body = service.health()[1]
    assert (body["models"], body["fingerprint"]) == (before["models"], before["fingerprint"])
    assert not (box.folder / "home" / ".local").exists()


def test_the_socket_is_its_user_s_alone_and_a_stale_one_is_replaced(box: Box) -> None:
    box.socket.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(box.socket))
    service = box.start()
    assert stat.S_IMODE(box.socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(box.socket.parent.stat().st_mode) == 0o700
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(box.socket))
        connection.sendall(b'{"command": "switch", "embed_mdel": "x"}\n')
        answer = json.loads(connection.makefile().readline())
    assert answer["code"] == "bad_command" and "embed_mdel" in answer["error"]
    assert service.terminate() == 0
    assert not box.socket.exists()
    status, lines = box.run("pause")
    assert (status, lines[-1]["code"]) == (3, "unavailable")
