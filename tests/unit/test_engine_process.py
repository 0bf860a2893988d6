"""The engine process as the HTTP process sees it: messages on a socket, an exit status."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from embed_service.engine.executor import Prepared, Result
from embed_service.engine.inbox import Inbox
from embed_service.engine.process import warm_up
from embed_service.engine.protocol import BlockingConnection, Header, Lane
from embed_service.engine.sequences import Sequences
from embed_service.errors import ModelError
from embed_service.models.describe import describe
from embed_service.models.spec import ModelSpec, Role
from embed_service.settings import Settings
from tests.support.service import ROOT, minilm_path, poll

SECONDS = 240


class Child:
    """`python -m embed_service.engine` on MiniLM, on a CPU in float32."""

    def __init__(self, **environment: str) -> None:
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(SECONDS)
        keep = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ}
        model = {"EMBED_MODEL": minilm_path(), "RERANK_MODEL": minilm_path()}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "embed_service.engine", "--fd", str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            cwd=ROOT,
            env={**keep, "DEVICE": "cpu", "DTYPE": "float32", "HF_HUB_OFFLINE": "1", **model, **environment},
        )
        theirs.close()
        self.connection = BlockingConnection(self.socket)

    def until(self, *kinds: str) -> list[tuple[Header, bytes]]:
        """Messages up to the first of these kinds, which is the last of the list."""
        seen = []
        while True:
            message = self.connection.receive()
            assert message is not None, f"the engine ended; before that: {[header for header, _ in seen]}"
            seen.append(message)
            if message[0]["type"] in kinds:
                return seen

    def run(self, number: int, lengths: list[int], lane: Lane = "bulk") -> None:
        ids = [np.arange(1000, 1000 + length, dtype=np.int32) for length in lengths]
        self.send(number, Sequences.of(ids).to_bytes(), len(ids), lane)

    def send(self, number: int, body: bytes, count: int = 1, lane: Lane = "bulk") -> None:
        self.connection.send({"type": "run", "id": number, "role": "embed", "lane": lane, "count": count}, body)

    def ids_until_the_end(self) -> list[tuple[str, int]]:
        """Kind and id of each message but heartbeats, until the engine ends."""
        seen = []
        while (message := self.connection.receive()) is not None:
            if message[0]["type"] != "heartbeat":
                seen.append((message[0]["type"], message[0]["id"]))
        return seen


@contextlib.contextmanager
def engine(**environment: str) -> Iterator[Child]:
    child = Child(**environment)
    try:
        yield child
    finally:
        child.connection.close()
        child.process.kill()
        child.process.wait()


def test_a_life() -> None:
    with engine() as child:
        before = [header for header, _ in child.until("ready")]
        kinds = [header["type"] for header in before]
        assert "heartbeat" in kinds[:2], "the first sign of life comes before anything slow"
        phases = [header["phase"] for header in before if header["type"] == "phase"]
        assert phases == ["resolving", "loading", "warming"]
        assert kinds.index("described") < [h.get("phase") for h in before].index("loading")
        models = {role: ModelSpec.from_wire(fields) for role, fields in before[kinds.index("described")]["models"].items()}
        assert (models["embed"].kind, models["rerank"].kind) == ("embedding", "cosine")
        assert models["embed"].revision == models["rerank"].revision and models["embed"].revision.startswith("local-")
        ready = before[-1]
        assert {key: ready[key] for key in ("device", "dtype", "executor", "attention")} == {
            "device": "cpu",
            "dtype": "float32",
            "executor": "packed",
            "attention": "sdpa",
        }

        child.process.send_signal(signal.SIGINT)  # Ctrl-C is the HTTP process's business
        for number, lengths in ((7, [5]), (8, [3, 200, 5])):
            child.run(number, lengths)
        child.connection.send({"type": "stop"})  # what was asked before is still answered
        (began, _), (first, body) = child.until("started")[-1], child.until("result")[-1]
        assert began["id"] == 7
        began = child.until("started")[-1][0]
        second, bodies = child.until("result")[-1]
        assert began["id"] == 8
        assert (first["id"], first["rows"], first["columns"]) == (7, 1, 384)
        assert (second["id"], second["computed_tokens"], second["failed"], second["oom_splits"]) == (8, 208, {}, 0)
        assert second["padded_tokens"] >= 208
        assert first["started"] < first["ended"] <= second["started"] < second["ended"] < time.monotonic(), "one clock for both processes"
        assert second["compute_seconds"] == pytest.approx(second["ended"] - second["started"])
        one, three = (np.frombuffer(raw, "<f4").reshape(-1, 384) for raw in (body, bodies))
        np.testing.assert_allclose(np.linalg.norm(three, axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(three[2], one[0], atol=1e-5)
        assert np.abs(three[0] - one[0]).max() > 0.01
        assert child.process.wait(SECONDS) == 0


OUT_OF_VOCABULARY = Sequences.of([np.array([30_522], np.int32)]).to_bytes()


@pytest.mark.parametrize("body", [OUT_OF_VOCABULARY, b"abc"], ids=["computing", "preparing"])
def test_an_error_ends_the_process_after_what_was_computed_is_told(body: bytes) -> None:
    """What stood by behind it is not begun, so that the blame for the end falls on what computed."""
    with engine(BULK_AGING_SECONDS="1000") as child:
        child.until("ready")
        child.run(1, [50] * 200)
        child.until("started")
        child.send(2, body, lane="interactive")
        child.run(3, [5])
        assert child.ids_until_the_end() == [("result", 1), ("started", 2)]
        assert child.process.wait(SECONDS) == 1


class Beside:
    """FAKE executor: a micro-batch is computed only when the next one is prepared, as on a device that would else be idle between."""

    name = "fake"

    def __init__(self) -> None:
        self.prepared = threading.Semaphore(0)

    def prepare(self, role: Role, sequences: Sequences) -> Prepared:
        self.prepared.release()
        return Prepared(role, sequences)

    def run(self, prepared: Prepared) -> Result:
        assert self.prepared.acquire(timeout=30) and self.prepared.acquire(timeout=30), "nothing was prepared beside computing"
        self.prepared.release()
        return Result(np.zeros((len(prepared.sequences), 500_000), np.float32), 0, 0)


def test_the_device_waits_neither_for_preparing_nor_for_a_slow_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results of 2 MB, more than the socket holds, and nobody reads before all are computed."""
    from embed_service.engine.process import EngineProcess, _Loaded

    ours, theirs = (BlockingConnection(end) for end in socket.socketpair())
    process, executor = EngineProcess(theirs), Beside()
    loaded = _Loaded(executor, Inbox(2.0))

    def load(settings: Settings) -> _Loaded:
        process._loaded = loaded
        return loaded

    def leave(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(process, "_load", load)
    monkeypatch.setattr("embed_service.telemetry.logs.configure", lambda settings: None)
    monkeypatch.setattr("embed_service.engine.process.os._exit", leave)
    load(Settings(device="cpu"))

    def read() -> None:
        with contextlib.suppress(SystemExit):
            process._read()

    reader = threading.Thread(target=read)
    reader.start()
    one = Sequences.of([np.zeros(3, np.int32)]).to_bytes()
    for number in range(1, 5):
        ours.send({"type": "run", "id": number, "role": "embed", "lane": "bulk", "count": 1}, one)
    executor.prepared.release()  # the last one has none behind it
    ours.send({"type": "stop"})
    assert process._run() == 0
    seen = [ours.receive() for _ in range(8)]
    assert [(m[0]["type"], m[0]["id"]) for m in seen if m] == [(kind, n) for n in range(1, 5) for kind in ("started", "result")]
    ours._sock.shutdown(socket.SHUT_RDWR)
    reader.join(30)
    for end in (ours, theirs):
        end.close()


@pytest.mark.parametrize(
    ("environment", "code", "words"),
    [
        ({"DEVICE": "mps"}, "no_mps", "DEVICE=auto"),
        ({"EMBED_MODEL": "/no/such/folder"}, "not_found", "EMBED_MODEL=/no/such/folder"),
        ({"EMBED_MODEL": "no/such-model", "HF_HOME": "/nowhere"}, "offline", "EMBED_MODEL=no/such-model"),
        ({"MAX_INPUT_TOKENS": "many"}, "bad_files", "MAX_INPUT_TOKENS"),
    ],
)
def test_failures_are_told_with_their_fix(environment: dict[str, str], code: str, words: str) -> None:
    with engine(**environment) as child:
        failed = child.until("failed")[-1][0]
        assert failed["code"] == code and words in failed["message"] and isinstance(failed["retryable"], bool)
        assert child.process.wait(SECONDS) == 3


def test_it_ends_when_the_socket_does() -> None:
    with engine() as child:
        child.until("heartbeat")
        child.socket.shutdown(socket.SHUT_RDWR)
        assert child.process.wait(SECONDS) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    """Even a stopped engine, which cannot see the end of its socket."""
    program = (
        "import subprocess, sys, socket; ours, theirs = socket.socketpair(); "
        "p = subprocess.Popen([sys.executable, '-m', 'embed_service.engine', '--fd', str(theirs.fileno())], pass_fds=(theirs.fileno(),)); "
        "ours.recv(1); print(p.pid, flush=True); p.wait()"
    )
    environment = {**os.environ, "DEVICE": "cpu", "EMBED_MODEL": minilm_path(), "RERANK_MODEL": minilm_path()}
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, env=environment, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        os.kill(pid, signal.SIGSTOP)
        parent.kill()

    def gone() -> bool:
        try:
            return " Z " in Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return True

    poll(gone, SECONDS, "the end of the engine")


class FullMemory:
    """FAKE executor of a device whose memory holds sequences up to `fits` tokens."""

    name = "fake"

    def __init__(self, fits: int) -> None:
        self.fits = fits

    def prepare(self, role: Role, sequences: Sequences) -> Prepared:
        return Prepared(role, sequences)

    def run(self, prepared: Prepared) -> Result:
        lengths = prepared.sequences.lengths
        failed = {n: "does not fit" for n, length in enumerate(lengths) if length > self.fits}
        return Result(np.zeros((len(lengths), 1), np.float32), 0, 0, failed=failed)


def test_a_model_that_leaves_no_memory_to_compute_is_an_error() -> None:
    import torch

    from embed_service.engine.device import Device

    settings = Settings(device="cpu")
    spec = describe("embed", minilm_path(), "local-0", minilm_path(), settings, "x")
    device = Device("cpu", torch.float32, "sdpa")
    warm_up(FullMemory(fits=100), {"embed": spec}, device, settings)  # long texts will fail one by one; that is no reason not to serve
    with pytest.raises(ModelError, match="choose a smaller model") as caught:
        warm_up(FullMemory(fits=0), {"embed": spec}, device, settings)
    assert caught.value.code == "no_memory"


def test_a_gpu_that_cannot_compute_is_told_with_its_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    """FAKE: the error of a GPU that is older than torch's build."""
    import torch

    from embed_service.engine.process import EngineProcess

    def load(settings: Settings) -> None:
        raise torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device\nmore lines")

    ours, theirs = (BlockingConnection(end) for end in socket.socketpair())
    process = EngineProcess(theirs)
    monkeypatch.setattr(process, "_load", load)
    monkeypatch.setattr("embed_service.telemetry.logs.configure", lambda settings: None)
    status = process._run()
    failed = ours.receive()
    for end in (ours, theirs):
        end.close()
    assert status == 3 and failed is not None
    assert failed[0]["code"] == "no_cuda" and "no kernel image" in failed[0]["message"] and "DEVICE=cpu" in failed[0]["message"]
