"""The supervisor and the dispatcher on a FAKE engine: which canaries count, and what happens to those who wait."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from embed_service.engine.protocol import Header
from embed_service.errors import Unavailable
from embed_service.models.spec import ModelSpec
from embed_service.scheduler.health import health_body
from embed_service.scheduler.lanes import Lanes
from embed_service.scheduler.link import ChildEngine
from embed_service.scheduler.supervisor import Supervisor
from embed_service.scheduler.work import Job, Lane
from embed_service.settings import Settings

ERROR = {"code": "no_memory", "message": "It does not fit.", "retryable": True}


class FakeEngine:
    """FAKE engine: keeps what it was asked, and says only what a test lets it say."""

    pid = 1
    node = None

    def __init__(self) -> None:
        self.asked: list[Header] = []
        self.killed = False

    def send(self, header: Header, body: bytes = b"") -> None:
        self.asked.append(header)

    def kill(self) -> None:
        self.killed = True


class Lives:
    """A supervisor whose engines answer every canary with the logit they are given.

    `supervisor` takes that of other lives: these are then the lives of its engine number `place`.
    """

    def __init__(self, engines: int = 1, place: int = 0, supervisor: Supervisor | None = None) -> None:
        self.supervisor = supervisor or Supervisor(Settings(device="cpu"), Lanes(), lambda models: None, [ChildEngine] * engines)
        self.keeper = self.supervisor.keepers[place]

    def one(self, logit: float, revision: str = "a", **ready: str) -> FakeEngine:
        """From `described` to the first canary's answer."""
        engine = self.described(revision)
        self.ready(**ready)
        self.answer(engine, logit)
        return engine

    def described(self, revision: str = "a") -> FakeEngine:
        engine: Any = FakeEngine()
        keeper = self.keeper
        keeper.engine, keeper._kill_cause = engine, None
        spec = ModelSpec("rerank", "m", revision, "/m", "bert", "classifier", max_tokens=512, vocabulary=1000)
        keeper.on_message({"type": "described", "models": {"rerank": spec.to_wire()}}, b"")
        return engine  # type: ignore[no-any-return]

    @property
    def engine(self) -> FakeEngine:
        return self.keeper.engine  # type: ignore[return-value]

    def ready(self, **ready: str) -> None:
        facts = {"device": "cuda", "dtype": "bfloat16", "executor": "packed", "attention": "sdpa", **ready}
        self.keeper.on_message({"type": "ready", "cuda_available": True, **facts}, b"")

    def answer(self, engine: FakeEngine, logit: float) -> None:
        number = engine.asked[-1]["id"]
        self.started(number)
        self.result(number, logit)

    def started(self, number: int) -> None:
        self.keeper.on_message({"type": "started", "id": number}, b"")

    def result(self, number: int, logit: float, rows: int = 1, **header: Any) -> None:
        figures = {"started": 0.0, "ended": 0.01, "compute_seconds": 0.01, "computed_tokens": 3, "padded_tokens": 3, "oom_splits": 0}
        body = np.full((rows, 1), logit, np.float32).tobytes()
        self.keeper.on_message({"type": "result", "id": number, "rows": rows, "columns": 1, **figures, **header}, body)

    def queue(self, texts: int, lane: Lane = "bulk", caller: str = "a") -> Job:
        """A job of 3 tokens a text."""
        sequences = [np.arange(3, dtype=np.int32)] * texts
        job = Job("rerank", lane, caller, sequences, [None] * texts, asyncio.get_running_loop().create_future())
        self.supervisor._lanes.put(job)
        self.supervisor.dispatcher.pump()
        return job

    def end(self) -> None:
        self.keeper.close()
        self.keeper.slot.detach()


@pytest.mark.parametrize(
    "change",
    [{"dtype": "float32"}, {"device": "cpu"}, {"attention": "flash_attention_2"}, {"revision": "b"}],
    ids=lambda change: next(iter(change)),
)
def test_another_precision_or_revision_has_canaries_of_its_own(change: dict[str, str]) -> None:
    """DEVICE=auto on a machine that loses its GPU, DTYPE=auto measured under load, a folder that was replaced: the engine is well."""

    async def check() -> None:
        lives = Lives()
        lives.one(-2.69)
        lives.end()
        assert not lives.one(-2.60, **change).killed
        assert lives.supervisor.ready.is_set()

    asyncio.run(check())


def test_an_engine_that_answers_otherwise_than_its_twin_is_killed() -> None:
    async def check() -> None:
        lives = Lives()
        lives.one(-2.69)
        lives.end()
        assert lives.one(-3.0).killed

    asyncio.run(check())


def test_one_step_of_bfloat16_is_not_another_answer() -> None:
    async def check() -> None:
        lives = Lives()
        engine = lives.one(-11.0)
        lives.keeper.slot.request_canaries()
        lives.answer(engine, -11.0625)
        assert not engine.killed and lives.supervisor.ready.is_set()
        lives.keeper.slot.request_canaries()
        lives.answer(engine, -9.0)
        assert engine.killed

    asyncio.run(check())


def test_nothing_counts_that_an_engine_says_after_a_wrong_canary() -> None:
    """Its weights are damaged; what it had computed behind the canary may lie in the socket still."""

    async def check() -> None:
        lives = Lives()
        engine = lives.one(-2.0)
        dispatcher, lanes = lives.supervisor.dispatcher, lives.supervisor._lanes
        job = Job("rerank", "bulk", "a", [np.arange(3, dtype=np.int32)], [None], asyncio.get_running_loop().create_future())
        lives.keeper.slot.request_canaries()
        lanes.put(job)
        dispatcher.pump()
        canary, work = (header["id"] for header in engine.asked[-2:])
        for number, logit in ((canary, -4.0), (work, -7.0)):
            lives.result(number, logit)
        assert engine.killed and not job.done.done()
        lives.end()
        engine = lives.one(-2.0)
        lives.answer(engine, -3.0)
        assert (await job.done).tolist() == [[-3.0]]

    asyncio.run(check())


def test_a_text_that_has_no_memory_now_may_come_again() -> None:
    """503 and not 500: a client that gives a rerank up keeps zero scores for good."""

    async def check() -> None:
        lives = Lives()
        engine = lives.one(-2.0)
        job = Job("rerank", "bulk", "a", [np.arange(3, dtype=np.int32)], [None], asyncio.get_running_loop().create_future())
        lives.supervisor._lanes.put(job)
        lives.supervisor.dispatcher.pump()
        lives.result(engine.asked[-1]["id"], float("nan"), failed={"0": "It does not fit."})
        with pytest.raises(Unavailable, match="does not fit") as caught:
            await job.done
        assert caught.value.code == "out_of_memory"
        assert not engine.killed and lives.supervisor.ready.is_set()

    asyncio.run(check())


def test_an_engine_that_loads_may_be_silent_for_longer() -> None:
    """A cold import of CUDA's libraries holds the interpreter, heartbeat and all."""
    lives = Lives()
    engine: Any = FakeEngine()
    keeper = lives.keeper
    keeper._heartbeat = 0.0
    keeper.watch(engine, 60.0)
    assert not engine.killed
    keeper.watch(engine, 121.0)
    assert engine.killed


def test_a_client_that_leaves_as_the_engine_fails_does_not_stop_the_telling_of_others() -> None:
    async def check() -> None:
        lanes = Lanes()
        supervisor = Supervisor(Settings(device="cpu"), lanes, lambda models: None)
        loop = asyncio.get_running_loop()
        left, stays = (Job("embed", "bulk", name, [np.zeros(3, np.int32)], [None], loop.create_future()) for name in "ab")
        for job in (left, stays):
            lanes.put(job)
        left.done.cancel()  # its request drops it from the queue one turn of the loop later
        supervisor.keepers[0].fail(ERROR)
        with pytest.raises(Unavailable, match="does not fit"):
            await stays.done
        assert not lanes

    asyncio.run(check())


def test_a_stall_counts_from_the_last_new_byte_over_engines_that_end() -> None:
    async def check() -> None:
        supervisor = Lives().supervisor
        state = supervisor.state

        def hear(phase: str, **counts: int) -> None:
            supervisor.keepers[0].on_message({"type": "phase", "phase": phase, **counts}, b"")

        hear("resolving")
        hear("downloading", done_bytes=0, total_bytes=50)
        hear("downloading", done_bytes=0, total_bytes=80)
        hear("downloading", done_bytes=30, total_bytes=80)
        state.progressed -= 400
        supervisor.keepers[0].on_message(
            {"type": "failed", "code": "offline", "message": "The hub cannot be used.", "retryable": True}, b""
        )
        await asyncio.sleep(0)
        hear("resolving")
        status, body = health_body(Settings(device="cpu"), supervisor, None, 0.0)
        assert (status, body["status"], body["error_code"]) == (503, "error", "offline")
        assert (body["progress"]["done_bytes"], body["progress"]["total_bytes"]) == (30, 80)
        assert body["progress"]["stalled_seconds"] >= 400 and body["progress"]["text"].startswith("downloading 0.00 of 0.00 GB (stalled")
        hear("downloading", done_bytes=10, total_bytes=50)  # the next engine counts what is there
        hear("downloading", done_bytes=30, total_bytes=80)
        body = health_body(Settings(device="cpu"), supervisor, None, 0.0)[1]
        assert body["status"] == "loading" and body["progress"]["stalled_seconds"] >= 400
        hear("downloading", done_bytes=31, total_bytes=80)
        assert state.stalled_seconds < 10

    asyncio.run(check())


@pytest.mark.parametrize(("code", "counts"), [("offline", None), ("no_disk", {"done_bytes": 3, "total_bytes": 8})])
def test_an_error_before_a_download_or_of_another_kind_carries_no_progress(code: str, counts: dict[str, int] | None) -> None:
    async def check() -> None:
        supervisor = Lives().supervisor
        if counts:
            supervisor.keepers[0].on_message({"type": "phase", "phase": "downloading", **counts}, b"")
        supervisor.keepers[0].on_message({"type": "failed", "code": code, "message": "No.", "retryable": True}, b"")
        await asyncio.sleep(0)
        body = health_body(Settings(device="cpu"), supervisor, None, 0.0)[1]
        assert body["error_code"] == code and "progress" not in body

    asyncio.run(check())
