"""The queue's order: lanes, turns, what comes back from a dead engine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embed_service.scheduler.lanes import Lanes
from embed_service.scheduler.work import Item, Job, Lane, MicroBatch


@pytest.fixture(scope="module", autouse=True)
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield loop
    asyncio.set_event_loop(None)
    loop.close()


def job(lengths: list[int], caller: str = "a", lane: Lane = "bulk", role: Any = "embed", prefix: int = 0) -> Job:
    """`lengths` are without the shared prefix."""
    sequences = [np.zeros(prefix + n, np.int32) for n in lengths]
    future = asyncio.get_event_loop().create_future()
    return Job(role, lane, caller, sequences, [None] * len(lengths), future, [prefix] * len(lengths) if prefix else None)


def take(lanes: Lanes, budget: int = 1000, most: int = 64, lane: Lane = "bulk") -> list[Item]:
    taken = lanes.take(lane, lambda role: budget, most)
    return taken[1] if taken else []


def test_each_lane_has_a_queue_of_its_own() -> None:
    lanes = Lanes()
    bulk, search = job([10] * 4), job([10], caller="b", lane="interactive")
    lanes.put(bulk)
    assert take(lanes, lane="interactive") == []
    lanes.put(search)
    assert [i.job for i in take(lanes, lane="interactive")] == [search]
    assert [i.job for i in take(lanes)] == [bulk] * 4
    assert not lanes


def test_callers_take_turns_within_a_micro_batch() -> None:
    lanes = Lanes()
    lanes.put(job([10] * 100, caller="indexer"))
    lanes.put(job([10] * 3, caller="other"))
    first = take(lanes, most=6)
    assert [i.job.caller for i in first] == ["indexer", "other"] * 3
    assert {i.job.caller for i in take(lanes, most=6)} == {"indexer"}


def test_turns_are_counted_in_tokens() -> None:
    """A caller with long texts does not get more of the device than one with short ones."""
    lanes = Lanes()
    lanes.put(job([300] * 10, caller="long"))
    lanes.put(job([100] * 30, caller="short"))
    taken = take(lanes, budget=2400)
    assert sum(i.length for i in taken if i.job.caller == "long") == sum(i.length for i in taken if i.job.caller == "short") == 1200


def test_who_comes_during_the_long_job_of_another_is_next() -> None:
    """The rerank of 40 long documents is cut into micro-batches; the query of another caller, of another role, goes between them."""
    lanes = Lanes()
    lanes.put(job([500] * 40, caller="a", role="rerank"))
    take(lanes)
    take(lanes)
    query = job([10], caller="b")
    lanes.put(query)
    assert [i.job for i in take(lanes)] == [query]


def test_who_comes_again_and_again_does_not_pass_those_who_wait() -> None:
    lanes = Lanes()
    waits = job([100] * 4, caller="waits", role="rerank")
    lanes.put(job([100], caller="again"))
    lanes.put(waits)
    order = []
    for _ in range(6):
        (item,) = take(lanes, most=1)
        order.append(item.job.caller)
        assert abs(order.count("again") - order.count("waits")) <= 1
        if item.job is not waits:
            lanes.put(job([100], caller="again"))
    assert order.count("waits") == 3


def test_who_comes_late_is_not_owed_what_others_had_before() -> None:
    lanes = Lanes()
    lanes.put(job([100] * 100, caller="early"))
    for _ in range(5):
        take(lanes)
    lanes.put(job([100] * 100, caller="late"))
    callers = [i.job.caller for i in take(lanes)]
    assert callers.count("late") <= callers.count("early") + 1


def test_a_shared_prefix_counts_once_for_each_job_in_a_micro_batch() -> None:
    lanes = Lanes()
    lanes.put(job([10] * 50, prefix=200, role="rerank"))
    lanes.put(job([10] * 50, prefix=300, role="rerank", caller="b"))
    assert lanes.queued_tokens == 50 * 210 + 50 * 310
    taken = take(lanes, budget=700)
    batch = MicroBatch(1, "rerank", "bulk", taken)
    assert (len(taken), batch.tokens) == (20, 700)
    assert sorted(batch.to_sequences().prefix.tolist()) == [200] * 10 + [300] * 10
    assert len(take(lanes, budget=500)) == 1, "both jobs' prefixes and an item of each do not fit"


def test_a_micro_batch_has_one_role() -> None:
    lanes = Lanes()
    lanes.put(job([10] * 2, caller="a", role="rerank"))
    lanes.put(job([10] * 2, caller="b", role="embed"))
    assert {i.job.role for i in take(lanes)} == {"rerank"}
    assert {i.job.role for i in take(lanes)} == {"embed"}


def test_one_sequence_longer_than_the_budget_goes_alone() -> None:
    lanes = Lanes()
    lanes.put(job([5000, 10, 10]))
    assert [i.length for i in take(lanes, budget=100)] == [5000]
    assert [i.length for i in take(lanes, budget=100)] == [10, 10]


def test_what_a_dead_engine_had_comes_back_first_and_a_suspect_goes_alone() -> None:
    lanes = Lanes()
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
    lanes = Lanes()
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
    lanes = Lanes()
    all_jobs = [job(lengths, caller, lane, "rerank" if rerank else "embed") for lengths, caller, lane, rerank in jobs]
    for one in all_jobs:
        lanes.put(one)
    dropped = {one for one in all_jobs if data.draw(st.booleans())} if all_jobs else set()
    seen: list[tuple[int, int]] = []
    returned = 0
    while (
        items := take(lanes, 2000, 5, data.draw(st.sampled_from(["interactive", "bulk"])))
        or take(lanes, 2000, 5)
        or (take(lanes, 2000, 5, "interactive"))
    ):
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
