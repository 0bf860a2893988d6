"""Which of the prepared micro-batches the device takes next, on a clock that is given."""

from __future__ import annotations

import threading

from embed_service.engine.inbox import Inbox

AGING = 2.0


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_interactive_goes_before_bulk_that_came_earlier() -> None:
    inbox: Inbox[str] = Inbox(AGING, Clock())
    inbox.put("bulk", "job")
    inbox.put("interactive", "search")
    assert [inbox.take(), inbox.take()] == ["search", "job"]


def test_bulk_that_was_passed_over_for_long_goes_first_once() -> None:
    clock = Clock()
    inbox: Inbox[str] = Inbox(AGING, clock)
    inbox.put("bulk", "job 1")
    inbox.put("interactive", "search 1")
    assert inbox.take() == "search 1"
    inbox.put("interactive", "search 2")
    clock.now += 1.9
    assert inbox.take() == "search 2"
    inbox.put("interactive", "search 3")
    clock.now += 0.1
    assert inbox.take() == "job 1"
    inbox.put("bulk", "job 2")
    assert [inbox.take(), inbox.take()] == ["search 3", "job 2"]


def test_bulk_micro_batches_that_take_long_do_not_age_by_that() -> None:
    """On a slow processor one takes longer than the ageing. The next, ready behind it, was not passed over."""
    clock = Clock()
    inbox: Inbox[str] = Inbox(AGING, clock)
    for n in range(3):
        inbox.put("bulk", f"job {n}")
        if n:
            inbox.put("interactive", f"search {n}")
            assert inbox.take() == f"search {n}"
        assert inbox.take() == f"job {n}"
        clock.now += 10 * AGING


def test_a_canary_goes_before_all() -> None:
    clock = Clock()
    inbox: Inbox[str] = Inbox(AGING, clock)
    inbox.put("bulk", "job")
    inbox.put("interactive", "search 1")
    inbox.put("interactive", "search 2")
    assert inbox.take() == "search 1"
    clock.now += AGING
    inbox.put("interactive", "canary", at_once=True)
    assert [inbox.take(), inbox.take(), inbox.take()] == ["canary", "job", "search 2"]


def test_under_unbroken_searches_bulk_moves_once_in_its_time() -> None:
    clock = Clock()
    inbox: Inbox[str] = Inbox(AGING, clock)
    inbox.put("bulk", "bulk")
    taken = []
    for _ in range(100):
        inbox.put("interactive", "search")
        taken.append(inbox.take())
        clock.now += 0.1
        if taken[-1] == "bulk":
            inbox.put("bulk", "bulk")
    assert 3 <= taken.count("bulk") <= 5


def test_within_a_lane_the_order_is_kept() -> None:
    inbox: Inbox[int] = Inbox(AGING, Clock())
    for n in range(3):
        inbox.put("interactive", n)
    assert [inbox.take() for _ in range(3)] == [0, 1, 2]


def test_what_is_there_at_the_end_is_still_given() -> None:
    inbox: Inbox[str] = Inbox(AGING, Clock())
    inbox.put("bulk", "job")
    inbox.put("interactive", "search")
    inbox.close()
    assert [inbox.take() for _ in range(4)] == ["search", "job", None, None]


def test_one_that_waits_is_woken() -> None:
    inbox: Inbox[str] = Inbox(AGING)
    taken: list[str | None] = []
    taker = threading.Thread(target=lambda: taken.extend([inbox.take(), inbox.take()]))
    taker.start()
    inbox.put("bulk", "job")
    inbox.close()
    taker.join(30)
    assert taken == ["job", None]
