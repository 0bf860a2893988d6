"""The queue's order: lanes, turns, aging, budgets, what comes back from a dead engine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embed_service.scheduler.budget import FLOOR_TOKENS, TokenBudget
from embed_service.scheduler.lanes import Lanes
from embed_service.scheduler.work import Item, Job, Lane

AGING_SECONDS = 1000.0


@pytest.fixture(scope="module", autouse=True)
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield loop
    asyncio.set_event_loop(None)
    loop.close()


def job(lengths: list[int], caller: str = "a", lane: Lane = "bulk", role: Any = "embed") -> Job:
    sequences = [np.zeros(n, np.int32) for n in lengths]
    return Job(role, lane, caller, sequences, [None] * len(lengths), asyncio.get_event_loop().create_future())


def take(lanes: Lanes, budget: int = 1000, most: int = 64) -> list[Item]:
    taken = lanes.take(lambda role: budget, most)
    return taken[1] if taken else []


def test_interactive_goes_before_bulk() -> None:
    lanes = Lanes(AGING_SECONDS)
    bulk, search = job([10] * 4), job([10], caller="b", lane="interactive")
    lanes.put(bulk)
    lanes.put(search)
    assert [i.job for i in take(lanes)] == [search]
    assert [i.job for i in take(lanes)] == [bulk] * 4
    assert not lanes


def test_bulk_that_has_waited_goes_first_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("embed_service.scheduler.lanes.time.monotonic", lambda: now[0])
    lanes = Lanes(bulk_aging_seconds=2)
    lanes.put(job([10] * 3))
    for n in range(3):
        lanes.put(job([10], caller=f"s{n}", lane="interactive"))
    now[0] += 1
    assert take(lanes, most=1)[0].job.lane == "interactive"
    now[0] += 1.5
    assert take(lanes, most=1)[0].job.lane == "bulk"
    assert take(lanes, most=1)[0].job.lane == "interactive"


def test_callers_take_turns_within_a_micro_batch() -> None:
    lanes = Lanes(AGING_SECONDS)
    lanes.put(job([10] * 100, caller="indexer"))
    lanes.put(job([10] * 3, caller="other"))
    first = take(lanes, most=6)
    assert [i.job.caller for i in first] == ["indexer", "other"] * 3
    assert {i.job.caller for i in take(lanes, most=6)} == {"indexer"}


def test_a_micro_batch_has_one_role() -> None:
    lanes = Lanes(AGING_SECONDS)
    lanes.put(job([10] * 2, caller="a", lane="interactive", role="rerank"))
    lanes.put(job([10] * 2, caller="b", lane="interactive", role="embed"))
    assert {i.job.role for i in take(lanes)} == {"rerank"}
    assert {i.job.role for i in take(lanes)} == {"embed"}


def test_one_sequence_longer_than_the_budget_goes_alone() -> None:
    lanes = Lanes(AGING_SECONDS)
    lanes.put(job([5000, 10, 10]))
    assert [i.length for i in take(lanes, budget=100)] == [5000]
    assert [i.length for i in take(lanes, budget=100)] == [10, 10]


def test_what_a_dead_engine_had_comes_back_first_and_a_suspect_goes_alone() -> None:
    lanes = Lanes(AGING_SECONDS)
    first, second = job([10] * 4, caller="a"), job([10] * 2, caller="b")
    lanes.put(first)
    lanes.put(second)
    taken = take(lanes, most=4)
    first.deaths[taken[0].index] = 2
    lanes.put_back(taken)
    assert take(lanes) == [taken[0]]
    assert set(take(lanes)) >= set(taken[1:])
    assert not lanes


def test_a_dropped_job_leaves_nothing() -> None:
    lanes = Lanes(AGING_SECONDS)
    gone, stays = job([10] * 50, caller="a"), job([7], caller="b")
    lanes.put(gone)
    lanes.put(stays)
    take(lanes, most=1)
    lanes.drop(gone)
    assert lanes.queued_tokens == 7
    assert [i.job for i in take(lanes)] == [stays]
    assert not lanes and lanes.queued_tokens == 0 and lanes.queued_sequences == {"interactive": 0, "bulk": 0}


LENGTHS = st.lists(st.integers(1, 3000), min_size=1, max_size=12)


@given(st.lists(st.tuples(LENGTHS, st.sampled_from("abc"), st.sampled_from(["interactive", "bulk"]), st.booleans()), max_size=8), st.data())
def test_nothing_is_lost_or_done_twice(jobs: list[tuple[list[int], str, Lane, bool]], data: st.DataObject) -> None:
    """Whatever is put, put back and dropped: each sequence of a job that stays comes out exactly once, within the budget."""
    lanes = Lanes(AGING_SECONDS)
    all_jobs = [job(lengths, caller, lane, "rerank" if rerank else "embed") for lengths, caller, lane, rerank in jobs]
    for one in all_jobs:
        lanes.put(one)
    dropped = {one for one in all_jobs if data.draw(st.booleans())} if all_jobs else set()
    seen: list[tuple[int, int]] = []
    returned = 0
    while items := take(lanes, budget=2000, most=5):
        assert len(items) == 1 or sum(i.length for i in items) <= 2000
        assert len(items) <= 5
        if returned < 3 and data.draw(st.booleans()):
            returned += 1
            lanes.put_back(items)
            continue
        seen += [(id(i.job), i.index) for i in items]
        for one in list(dropped):
            lanes.drop(one)
            one.done.cancel()
            dropped.discard(one)
    expected = {(id(one), n) for one in all_jobs if not one.done.cancelled() for n in range(len(one.sequences))}
    assert len(seen) == len(set(seen))
    assert expected <= set(seen)
    assert lanes.queued_tokens == 0 and set(lanes.queued_sequences.values()) == {0}


def test_budget_follows_the_measured_rate_and_memory() -> None:
    budget = TokenBudget(max_tokens=16_384, target_seconds=0.25)
    assert budget.tokens == 2048
    for _ in range(20):
        budget.observe(2000, seconds=1.0)
    assert budget.tokens == pytest.approx(500, rel=0.02)
    for _ in range(30):
        budget.observe(2000, seconds=0.01)
    assert budget.tokens == 16_384
    budget.out_of_memory(8000)
    assert budget.tokens == 4000
    for _ in range(100):
        budget.observe(budget.tokens, seconds=0.001)
    assert budget.tokens == 16_384
    for _ in range(20):
        budget.out_of_memory(300)
    assert budget.tokens == FLOOR_TOKENS
