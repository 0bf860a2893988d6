"""The token budget: how it follows a device whose speed is given, in seconds that are given."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embed_service.scheduler.budget import EFFICIENT_TOKENS, FLOOR_TOKENS, STRETCH, TokenBudget

MAX_TOKENS = 16_384
TARGET = 0.1


class Machine:
    """A device that takes `overhead` seconds for each micro-batch and computes `rate` tokens a second."""

    def __init__(self, rate: float, overhead: float = 0.0) -> None:
        self.rate, self.overhead = rate, overhead
        self.budget = TokenBudget(MAX_TOKENS, TARGET)

    def seconds(self, tokens: int) -> float:
        return self.overhead + tokens / self.rate

    def compute(self, tokens: int | None = None) -> float:
        """One micro-batch, of the whole budget unless told. The seconds that it took."""
        tokens = self.budget.tokens if tokens is None else tokens
        seconds = self.seconds(tokens)
        self.budget.observe(tokens, seconds)
        return seconds


def test_before_the_first_measurement_it_is_cautious() -> None:
    assert TokenBudget(MAX_TOKENS, TARGET).tokens == MAX_TOKENS // 8


@given(st.floats(3_000, 10_000_000), st.floats(0, 0.05))
def test_full_micro_batches_come_to_take_the_target(rate: float, overhead: float) -> None:
    machine = Machine(rate, overhead)
    for _ in range(40):
        machine.compute()
    possible = (TARGET - overhead) * rate
    if possible >= EFFICIENT_TOKENS:
        assert machine.budget.tokens == pytest.approx(min(MAX_TOKENS, possible), rel=0.1)
    else:
        assert machine.budget.tokens <= EFFICIENT_TOKENS
        assert machine.seconds(machine.budget.tokens) <= 1.1 * STRETCH * TARGET or machine.budget.tokens == FLOOR_TOKENS


def test_a_slow_device_gets_more_than_the_target_but_not_much_more() -> None:
    """One that computes 5,000 tokens a second has 1,024 in a micro-batch; one of 3,000 as many as take 2.5 times the target."""
    for rate, tokens in ((5_000, EFFICIENT_TOKENS), (3_000, STRETCH * TARGET * 3_000), (500, FLOOR_TOKENS)):
        machine = Machine(rate)
        for _ in range(40):
            machine.compute()
        assert machine.budget.tokens == pytest.approx(tokens, rel=0.01)


@given(st.lists(st.floats(0.8, 1.25), min_size=60, max_size=60))
def test_noise_does_not_wear_it_down(noise: list[float]) -> None:
    """After one slow measurement it regains, also where every full micro-batch takes longer than the target."""
    machine = Machine(4_000)
    for factor in noise:
        machine.rate = 4_000 * factor
        machine.compute()
    machine.rate = 4_000
    for _ in range(10):
        machine.compute()
    assert machine.budget.tokens >= 0.95 * STRETCH * TARGET * 4_000


@given(st.floats(20_000, 10_000_000), st.floats(2, 50))
def test_one_measurement_of_a_slow_down_is_enough(rate: float, factor: float) -> None:
    machine = Machine(rate)
    for _ in range(40):
        machine.compute()
    machine.rate /= factor
    machine.compute()
    tokens = machine.budget.tokens
    most = TARGET if tokens > EFFICIENT_TOKENS else STRETCH * TARGET
    assert machine.seconds(tokens) <= most * 1.01 or tokens == FLOOR_TOKENS


@given(st.floats(20_000, 160_000), st.floats(1, 60))
def test_one_slow_micro_batch_is_made_good_in_a_few(rate: float, seconds: float) -> None:
    """A first one that chooses kernels, a machine that woke up: half of what it had within eight."""
    machine = Machine(rate)
    for _ in range(40):
        machine.compute()
    before = machine.budget.tokens
    machine.budget.observe(before, seconds)
    for _ in range(8):
        assert machine.compute() <= TARGET * 1.01
    assert machine.budget.tokens >= before / 2


@given(st.floats(20_000, 160_000), st.lists(st.integers(1, 600), max_size=100))
def test_small_searches_do_not_shrink_the_micro_batches_of_bulk(rate: float, lengths: list[int]) -> None:
    """Where the overhead is most of their time, they look slow."""
    machine = Machine(rate, overhead=0.02)
    for _ in range(40):
        machine.compute()
    before = machine.budget.tokens
    for tokens in lengths:
        machine.compute(min(tokens, before // 3))
    assert machine.budget.tokens >= before


def test_what_is_as_small_as_the_floor_says_nothing() -> None:
    budget = TokenBudget(MAX_TOKENS, TARGET)
    budget.observe(FLOOR_TOKENS // 2 - 1, seconds=5.0)
    budget.observe(1000, seconds=0.0)
    assert budget.tokens == MAX_TOKENS // 8
    budget.observe(FLOOR_TOKENS // 2, seconds=5.0)
    assert budget.tokens == FLOOR_TOKENS


def test_out_of_memory_halves_and_is_regained_step_by_step() -> None:
    machine = Machine(rate=10_000_000)
    for _ in range(10):
        machine.compute()
    assert machine.budget.tokens == MAX_TOKENS
    machine.budget.out_of_memory(8_000)
    assert machine.budget.tokens == 4_000
    machine.compute()
    assert machine.budget.tokens == 4_200
    for _ in range(100):
        machine.compute()
    assert machine.budget.tokens == MAX_TOKENS
    for _ in range(20):
        machine.budget.out_of_memory(300)
    assert machine.budget.tokens == FLOOR_TOKENS
