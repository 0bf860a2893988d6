"""The arithmetic of the benchmark's summary: which way a ratio goes, and what counts as held."""

from __future__ import annotations

import pytest

from benchmarks.aims import Aim, aims, lines
from benchmarks.plan import FULL, QUICK, Clock
from benchmarks.reranking import QWEN3, RERANK, row_name
from benchmarks.results import INFINITY, OURS, VLLM, Results
from benchmarks.scenarios import EMBEDDINGS


def speed(ours: float, theirs: float) -> Results:
    results = Results()
    row = results.row("S", "speed", "texts/s", "higher")
    row.add(OURS, ours)
    row.add(VLLM, theirs)
    return results


def seconds(ours: float, theirs: float) -> Results:
    results = Results()
    row = results.row("S", "time", "s", "lower")
    row.add(OURS, ours)
    row.add(VLLM, theirs)
    return results


def test_ratio_is_ours_over_theirs_and_advantage_grows_as_we_get_better() -> None:
    faster, shorter = speed(30, 20).rows[0], seconds(2, 8).rows[0]
    assert faster.ratio(VLLM) == faster.advantage(VLLM) == 1.5
    assert shorter.ratio(VLLM) == 0.25
    assert shorter.advantage(VLLM) == 4


def test_median_of_the_rounds_counts() -> None:
    results = speed(30, 20)
    for figure in (1, 40):
        results.row("S", "speed", "texts/s", "higher").add(OURS, figure)
    assert results.rows[0].ratio(VLLM) == 1.5


@pytest.mark.parametrize(("ours", "holds"), [(24.1, True), (24, True), (23.9, False)])
def test_more_texts_per_second_hold_an_aim(ours: float, holds: bool) -> None:
    assert Aim("w", VLLM, "≥", 1.2, "S", "speed", VLLM).holds(speed(ours, 20)) is holds


@pytest.mark.parametrize(("ours", "holds"), [(3.2, True), (3.3, True), (3.4, False)])
def test_less_time_holds_an_aim(ours: float, holds: bool) -> None:
    assert Aim("w", VLLM, "≤", 0.33, "S", "time", VLLM).holds(seconds(ours, 10)) is holds


def test_aim_without_a_peer_is_about_our_own_figure() -> None:
    aim = Aim("w", "", "≤", 1_050, "S", "time", unit="kB")
    assert lines([aim], seconds(1_034.4, 1)) == [("w", "", "≤ 1,050 kB", "1,034 kB", "yes")]
    assert lines([aim], seconds(1_060, 1))[0][-1] == "no"


def test_what_was_not_measured_is_neither_held_nor_missed() -> None:
    here = Aim("w", INFINITY, "≥", 1.6, "S", "speed", INFINITY, wish="2")
    elsewhere = Aim("w", VLLM, "≥", 1, "T", "speed", VLLM)
    assert lines([here, elsewhere], speed(30, 20)) == [
        ("w", INFINITY, "≥ 1.6 (2 if possible)", "", "not measured"),
        ("w", VLLM, "≥ 1", "", "not measured"),
    ]


def test_more_is_wanted_of_a_processor_with_amx() -> None:
    wanted = {units: aims(units, 40, (100, 10_000))[0].figure for units in (("avx2",), ("avx2", "amx_bf16"))}
    assert wanted == {("avx2",): 0.8, ("avx2", "amx_bf16"): 1.2}


def test_first_round_comes_whatever_the_time_and_none_after_its_end() -> None:
    assert list(Clock(0).rounds(3, 0.5)) == [0]
    assert list(Clock(1_000).rounds(3, 0.5)) == [0, 1, 2]


def test_what_the_aims_speak_of_is_what_the_plans_measure() -> None:
    wanted = aims((), FULL.documents, FULL.memory)
    for plan in (FULL, QUICK):
        rows = {(EMBEDDINGS, cell.name) for cell in plan.cells} | {(RERANK, row_name(QWEN3, tokens)) for tokens in plan.tokens}
        assert {(aim.section, aim.row) for aim in wanted if aim.section == EMBEDDINGS or QWEN3 in aim.row} == rows
