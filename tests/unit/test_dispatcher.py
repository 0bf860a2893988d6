"""The dispatcher on a FAKE engine: what is sent when, whom a death is counted against, when an engine is stuck, what is measured."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from embed_service.errors import InternalError
from embed_service.scheduler.device_time import DeviceTime
from embed_service.telemetry import metrics
from tests.unit.test_supervisor import FakeEngine, Lives

MOST = 64  # MAX_BATCH_SIZE


def run(check: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(check(), 30))


def work_of(engine: FakeEngine) -> list[tuple[str, int]]:
    """Lane and number of sequences of what was sent after the first canary."""
    return [(header["lane"], header["count"]) for header in engine.asked[1:]]


def test_behind_what_computes_one_of_each_lane_stands_by() -> None:
    async def check() -> None:
        lives = Lives()
        engine = lives.one(-2.0)
        lives.queue(3 * MOST)
        assert work_of(engine) == [("bulk", MOST)], "it has not started: there is no room behind it"
        lives.started(engine.asked[-1]["id"])
        assert work_of(engine) == [("bulk", MOST)] * 2
        lives.queue(1, "interactive")
        lives.queue(1, "interactive", caller="b")
        assert work_of(engine) == [("bulk", MOST), ("bulk", MOST), ("interactive", 1)]
        lives.result(engine.asked[1]["id"], -2.0, rows=MOST)
        assert len(work_of(engine)) == 3, "an answer makes no room, a start does"
        lives.started(engine.asked[3]["id"])
        assert work_of(engine)[3:] == [("interactive", 1)]
        lives.started(engine.asked[2]["id"])
        assert work_of(engine)[4:] == [("bulk", MOST)]

    run(check)


def test_a_canary_goes_before_other_interactive_work() -> None:
    async def check() -> None:
        lives = Lives()
        engine = lives.one(-2.0)
        first = lives.queue(1, "interactive")
        lives.queue(1, "interactive", caller="b")
        lives.keeper.slot.request_canaries()
        assert len(work_of(engine)) == 1
        lives.answer(engine, -3.0)
        assert (await first.done).tolist() == [[-3.0]]
        canary = engine.asked[-1]["id"]
        lives.result(canary, -2.0)
        assert lives.supervisor.ready.is_set() and not engine.killed, "what was sent second was the canary"
        assert len(work_of(engine)) == 3

    run(check)


@pytest.mark.parametrize("number", [1, 2, 999])
def test_a_start_or_an_answer_that_is_told_twice_or_of_nothing_changes_nothing(number: int) -> None:
    async def check() -> None:
        lives = Lives()
        engine = lives.one(-2.0)  # its canary was number 1
        lives.queue(3 * MOST)
        for _ in range(2):
            lives.started(2)
        assert len(work_of(engine)) == 2
        lives.result(2, -2.0, rows=MOST)
        lives.started(number)
        lives.result(number, -2.0, rows=MOST)
        assert len(work_of(engine)) == 2 and not engine.killed

    run(check)


def test_a_death_counts_against_what_computed_and_only_that() -> None:
    async def check() -> None:
        lives = Lives()
        poison, neighbour = None, None
        for life in range(3):
            engine = lives.one(-2.0)
            if life == 0:
                poison, neighbour = lives.queue(1), lives.queue(1, "interactive")
            lives.started(next(h["id"] for h in engine.asked[1:] if h["lane"] == "bulk"))
            lives.end()
        assert poison is not None and neighbour is not None
        with pytest.raises(InternalError, match="Input 0 ended the engine 3 times"):
            await poison.done
        assert neighbour.deaths == {0: 0} and not neighbour.done.done()

    run(check)


def test_a_death_before_anything_started_counts_against_nothing() -> None:
    async def check() -> None:
        lives = Lives()
        lives.one(-2.0)
        job = lives.queue(2)
        lives.end()
        assert job.deaths == {0: 0, 1: 0}
        engine = lives.one(-2.0)
        lives.started(engine.asked[-1]["id"])
        lives.result(engine.asked[-1]["id"], -5.0, rows=2)
        lives.end()
        assert (await job.done).tolist() == [[-5.0]] * 2

    run(check)


def test_what_was_at_an_engine_that_died_is_computed_with_care() -> None:
    async def check() -> None:
        lives = Lives()
        engine = lives.one(-2.0)
        lives.queue(2)
        assert not engine.asked[-1]["careful"]
        lives.end()
        engine = lives.one(-2.0)
        assert engine.asked[-1]["careful"]
        lives.started(engine.asked[-1]["id"])
        lives.queue(1)
        assert not engine.asked[-1]["careful"]

    run(check)


def test_how_long_the_engine_has_owed_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("embed_service.scheduler.slot.time.monotonic", lambda: now[0])

    async def check() -> None:
        lives = Lives()
        engine = lives.one(-2.0)
        slot = lives.keeper.slot
        now[0] += 50
        assert slot.head_seconds == 0
        lives.queue(2 * MOST)
        now[0] += 5
        assert slot.head_seconds == 5, "sent and not started: an engine that prepares for ever is stuck too"
        first = engine.asked[-1]["id"]
        lives.started(first)
        now[0] += 7
        assert slot.head_seconds == 7
        lives.result(first, -2.0, rows=MOST)
        now[0] += 3
        assert slot.head_seconds == 3, "the second was sent earlier, but the device has been free only since the last answer"
        lives.started(engine.asked[-1]["id"])
        lives.result(engine.asked[-1]["id"], -2.0, rows=MOST)
        now[0] += 9
        assert slot.head_seconds == 0

    run(check)


def test_the_budget_follows_the_tokens_that_were_computed() -> None:
    """Not those that were sent: shared prefixes may have been computed for an earlier micro-batch."""

    async def check() -> None:
        lives = Lives()
        engine = lives.one(-2.0)
        lives.queue(MOST)
        lives.started(engine.asked[-1]["id"])
        lives.result(engine.asked[-1]["id"], -2.0, rows=MOST, computed_tokens=2_000, compute_seconds=1.0)
        assert lives.keeper.slot.budgets["rerank"].tokens == 500  # in 2.5 times TARGET_BATCH_MS = 100

    run(check)


def busy_and_idle() -> tuple[float, float]:
    def value(name: str) -> float:
        found = metrics.REGISTRY.get_sample_value(name)
        assert found is not None
        return found

    return value("embed_engine_busy_seconds_total"), value("embed_engine_idle_seconds_total")


CANARY = None


@pytest.mark.parametrize(
    ("computed", "busy", "idle"),
    [
        pytest.param([(10, 11, 10)], 1, 0, id="nothing is known before the first"),
        pytest.param([(10, 11, CANARY), (11, 12, 5)], 2, 0, id="without a gap"),
        pytest.param([(10, 11, CANARY), (14, 15, 5)], 2, 3, id="work waited all the while"),
        pytest.param([(10, 11, CANARY), (14, 15, 12)], 2, 2, id="work came in the gap"),
        pytest.param([(10, 11, CANARY), (14, 15, 14.5)], 2, 0, id="clocks that differ by a little"),
        pytest.param([(10, 11, CANARY), (14, 15, CANARY), (16, 17, 5)], 3, 1, id="nobody waits for a canary"),
        pytest.param([(10, 11, CANARY), None, (3, 4, CANARY), (6, 7, 2)], 3, 2, id="another engine"),
        pytest.param([(10, 11, CANARY), None, (90, 91, 5)], 2, 0, id="the time without an engine is not the device's"),
    ],
)
def test_idle_is_the_time_in_which_work_waited_for_a_free_device(computed: list[Any], busy: float, idle: float) -> None:
    """`computed`: started, ended, waiting since; None: the engine ends and another comes."""
    time = DeviceTime()
    before = busy_and_idle()
    for one in computed:
        if one is None:
            time.reset()
        else:
            time.computed(*one)
    after = busy_and_idle()
    assert (after[0] - before[0], after[1] - before[1]) == pytest.approx((busy, idle))


def test_idle_counts_from_when_the_oldest_work_of_the_micro_batch_was_queued() -> None:
    async def check() -> None:
        lives = Lives()
        engine = lives.one(-2.0)  # computed from 0 to 0.01
        before = busy_and_idle()
        lives.queue(2).created = 3.0
        lives.started(engine.asked[-1]["id"])
        older = lives.queue(1)
        older.created = 2.0
        lives.result(engine.asked[-1]["id"] - 1, -2.0, rows=2, started=5.0, ended=6.0)
        lives.started(engine.asked[-1]["id"])
        lives.result(engine.asked[-1]["id"], -2.0, started=6.5, ended=7.0)
        after = busy_and_idle()
        assert (after[0] - before[0], after[1] - before[1]) == pytest.approx((1.5, 2.5))

    run(check)
