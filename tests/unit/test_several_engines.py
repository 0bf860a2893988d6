"""The dispatcher and the supervisor on several FAKE engines: who gets what, and that one engine's end concerns no other's work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from embed_service.errors import InternalError, Unavailable
from embed_service.scheduler.health import health_body
from embed_service.settings import Settings
from tests.unit.test_dispatcher import work_of
from tests.unit.test_supervisor import ERROR, FakeEngine, Lives

MOST = 64  # MAX_BATCH_SIZE


def two() -> tuple[Lives, Lives]:
    first = Lives(engines=2)
    return first, Lives(place=1, supervisor=first.supervisor)


def run(check: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(check(), 30))


def finish(lives: Lives, engine: FakeEngine, logit: float) -> None:
    """Start and answer the last that was sent."""
    last = engine.asked[-1]
    lives.started(last["id"])
    lives.result(last["id"], logit, rows=last["count"])


def test_micro_batches_spread_before_any_stands_by() -> None:
    async def check() -> None:
        a, b = two()
        one, other = a.one(-2.0), b.one(-2.0)
        a.queue(2 * MOST)
        assert work_of(one) == work_of(other) == [("bulk", MOST)]
        a.queue(1, "interactive")
        a.queue(1, "interactive", caller="b")
        assert work_of(one)[1:] == work_of(other)[1:] == [("interactive", 1)]

    run(check)


def test_single_requests_go_to_the_engines_in_turn() -> None:
    async def check() -> None:
        a, b = two()
        one, other = a.one(-2.0), b.one(-2.0)
        for _ in range(2):
            for lives, engine in ((a, one), (b, other)):
                job = a.queue(1, "interactive")
                finish(lives, engine, -4.0)
                assert (await job.done).tolist() == [[-4.0]]

    run(check)


def test_the_slower_of_two_boxes_gets_smaller_micro_batches() -> None:
    async def check() -> None:
        a, b = two()
        one, other = a.one(-2.0), b.one(-2.0)
        a.queue(2 * MOST)
        for lives, engine, seconds in ((a, one, 0.5), (b, other, 0.005)):
            last = engine.asked[-1]
            lives.started(last["id"])
            lives.result(last["id"], -1.0, rows=MOST, computed_tokens=1_000, compute_seconds=seconds)
        assert a.keeper.slot.budgets["rerank"].tokens < b.keeper.slot.budgets["rerank"].tokens

    run(check)


def test_what_an_engine_had_when_it_ended_goes_to_the_other_at_once_and_that_ones_work_stays() -> None:
    async def check() -> None:
        a, b = two()
        one, other = a.one(-2.0), b.one(-2.0)
        lost, kept = a.queue(MOST), a.queue(MOST, caller="b")
        a.started(one.asked[-1]["id"])
        b.started(other.asked[-1]["id"])
        a.end()
        assert lost.deaths == dict.fromkeys(range(MOST), 1) and not kept.deaths
        assert work_of(other) == [("bulk", MOST)] * 2 and other.asked[-1]["careful"]
        assert a.supervisor.ready.is_set(), "one engine is left"
        b.result(other.asked[-2]["id"], -3.0, rows=MOST)
        finish(b, other, -3.0)
        assert (await lost.done).tolist() == (await kept.done).tolist() == [[-3.0]] * MOST

    run(check)


def test_an_engine_that_comes_back_takes_its_part() -> None:
    async def check() -> None:
        a, b = two()
        a.one(-2.0), b.one(-2.0)
        a.end()
        a.queue(3 * MOST)
        again = a.one(-2.0)
        assert work_of(again) == [("bulk", MOST)]

    run(check)


def test_a_poisonous_text_ends_alone_whichever_engines_it_meets() -> None:
    async def check() -> None:
        a, b = two()
        a.one(-2.0), b.one(-2.0)
        poison = a.queue(1)
        for lives in (a, b, a):
            if not lives.keeper.is_open:
                lives.one(-2.0)
            engine: Any = lives.keeper.engine
            assert work_of(engine) == [("bulk", 1)]
            lives.started(engine.asked[-1]["id"])
            lives.end()
        with pytest.raises(InternalError, match="ended the engine 3 times"):
            await poison.done

    run(check)


def test_a_condemned_engine_gets_no_more_work_and_its_answers_do_not_count() -> None:
    async def check() -> None:
        a, b = two()
        one, other = a.one(-2.0), b.one(-2.0)
        job = a.queue(1)
        a.keeper.slot.request_canaries()
        canary = one.asked[-1]
        a.result(canary["id"], -9.0)
        assert one.killed and not other.killed
        finish_id = next(header["id"] for header in one.asked if header["lane"] == "bulk")
        a.result(finish_id, -7.0)
        assert not job.done.done()
        a.queue(1, "interactive")
        assert len(work_of(one)) == 2 and work_of(other) == [("interactive", 1)]
        a.end()
        finish(b, other, -3.0)
        assert (await job.done).tolist() == [[-3.0]]

    run(check)


def test_a_second_engine_is_measured_by_the_canaries_of_the_first() -> None:
    async def check() -> None:
        a, b = two()
        a.one(-2.0)
        assert b.one(-3.0).killed and not b.keeper.is_open
        b.end()
        assert not b.one(-3.0, device="cpu").killed, "another kind of device has answers of its own"

    run(check)


def test_a_box_with_another_revision_is_refused_while_the_others_serve() -> None:
    async def check() -> None:
        a, b = two()
        one = a.one(-2.0)
        odd = b.described("b")
        assert odd.killed and not one.killed and a.supervisor.ready.is_set()
        status, body = health_body(Settings(device="cpu"), a.supervisor, None, 0.0)
        assert status == 200 and [engine["phase"] for engine in body["engines"]] == ["ready", "error"]
        assert "RERANK_MODEL=m at revision b, but m at a is served" in body["engines"][1]["error"]
        b.ready()
        assert not odd.asked and not b.keeper.is_open, "what it says while it dies changes nothing"
        assert not b.described("a").killed

    run(check)


def test_what_was_described_first_is_the_measure_until_the_next_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is queued has token ids of those models, even when no engine is left that has them."""

    async def check() -> None:
        a, b = two()
        a.one(-2.0)
        a.end()
        a.keeper.models = {}
        job = a.queue(1)
        assert b.described("b").killed and not job.done.done()
        b.one(-2.0, "a")
        finish(b, b.engine, -3.0)
        assert (await job.done).tolist() == [[-3.0]]
        for lives in (a, b):
            lives.end()
            monkeypatch.setattr(lives.keeper, "start", lambda environment: None)
        await a.supervisor.start()
        assert not b.described("b").killed and a.described("a").killed

    run(check)


def test_a_single_engine_whose_files_were_replaced_fails_what_was_tokenised_for_the_model_before() -> None:
    async def check() -> None:
        lives = Lives()
        engine = lives.one(-2.0)
        at_the_engine, waits = lives.queue(MOST), lives.queue(MOST)
        lives.started(engine.asked[-1]["id"])
        lives.end()
        again = lives.one(-2.0, "b")
        for job in (at_the_engine, waits):
            with pytest.raises(Unavailable, match="files on the box were replaced") as caught:
                await job.done
            assert caught.value.code == "model_changed"
        assert work_of(again) == [] and lives.supervisor.ready.is_set()
        fresh = lives.queue(1)
        finish(lives, again, -3.0)
        assert (await fresh.done).tolist() == [[-3.0]]

    run(check)


def test_requests_wait_while_one_engine_may_still_come_and_fail_when_none_can() -> None:
    async def check() -> None:
        a, b = two()
        job = a.queue(1)
        a.keeper.fail(ERROR)
        assert not job.done.done() and a.supervisor.state.error is None
        b.keeper.fail(ERROR)
        with pytest.raises(Unavailable, match="does not fit"):
            await job.done

    run(check)


def test_health_is_that_of_the_most_advanced_engine() -> None:
    async def check() -> None:
        a, b = two()
        a.keeper.on_message({"type": "phase", "phase": "placing", "detail": "no box has a free GPU"}, b"")
        body = health_body(Settings(device="cpu"), a.supervisor, None, 0.0)[1]
        assert body["phase"] == "placing" and body["progress"]["text"].endswith("(no box has a free GPU)")
        b.keeper.on_message({"type": "phase", "phase": "downloading", "done_bytes": 1, "total_bytes": 8}, b"")
        body = health_body(Settings(device="cpu"), a.supervisor, None, 0.0)[1]
        assert (body["phase"], body["progress"]["total_bytes"]) == ("downloading", 8)
        b.one(-2.0)
        status, body = health_body(Settings(device="cpu"), a.supervisor, None, 0.0)
        assert (status, body["status"], [engine["phase"] for engine in body["engines"]]) == (200, "ok", ["placing", "ready"])

    run(check)
