"""Estimates, and the lines that a start prints where it cannot draw."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmdctl.startup.display import LiveDisplay, PlainDisplay
from qmdctl.startup.estimate import TOTAL, Estimate, Progress, make_estimate, remember, start_key
from qmdctl.startup.phases import Phase
from qmdctl.state import State
from qmdctl.terminal import Terminal
from tests.qmdctl.projects import settings_of

LAST = Estimate(
    {"embed": {"starting": 5, "loading": 30, "warming": 10}, "vllm": {"loading": 40, "compiling": 120, "warming": 20}},
    "last start took 4 min 05 s",
)


def at(name: str, seconds: float = 0.0, rate: float = 0.0, **fields: int) -> Progress:
    return Progress(Phase(name, **fields), seconds, rate)


@pytest.mark.parametrize(
    ("where", "rest"),
    [
        ({"embed": at("loading", 10)}, 30),
        ({"embed": at("loading", 90)}, 10),  # longer than last time: only what comes after it
        ({"embed": at("warming", 4), "vllm": at("compiling", 20)}, 120),
        ({"embed": at("ready"), "vllm": at("warming", 5)}, 15),
        ({"embed": at("ready"), "vllm": at("ready")}, 0),
        ({"embed": at("loading", 10), "vllm": at("waiting", 10)}, 30 + 180),
        ({"embed": at("downloading", 3, 10e6, done_bytes=10**8, total_bytes=6 * 10**8)}, 50 + 40),
        ({"embed": at("downloading", 3)}, None),  # neither size nor rate
        ({"other": at("loading")}, None),
    ],
)
def test_what_is_left_of_a_start(where: dict[str, Progress], rest: float | None) -> None:
    assert LAST.remaining(where) == rest


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(10, "about 30 s left (last start took 4 min 05 s)"), (29.6, "about 10 s left (last start took 4 min 05 s)")],
)
def test_the_estimate_in_words(seconds: float, text: str) -> None:
    assert LAST.text({"embed": at("loading", seconds)}) == text
    assert LAST.text({"vllm": at("loading")}) == "about 3 min left (last start took 4 min 05 s)"
    assert LAST.text({"embed": at("warming", 60)}) == "longer than expected (last start took 4 min 05 s)"
    assert Estimate({}).text({"embed": at("loading")}) == ""


def test_a_start_is_remembered_without_its_download_and_replaces_the_last(tmp_path: Path) -> None:
    state = State(tmp_path / "state.json")
    settings = settings_of(tmp_path, {"EMBED_MODEL": "my/own"}, services=("embed",))
    key = start_key(settings)
    assert make_estimate(settings, state).expected == {}
    remember(key, state, {"embed": {"loading": 30.0, "compiling": 100.0}}, 140.0)
    remember(key, state, {"embed": {"downloading": 3600.0, "waiting": 5.0, "loading": 31.26}}, 3700.0)
    assert State(state.path).last_start(key) == {"embed": {"loading": 31.3, TOTAL: 140.0}}
    estimate = make_estimate(settings, State(state.path))
    assert estimate.source == "last start took 2 min 20 s"
    assert estimate.remaining({"embed": at("starting")}) == 31.3


def test_the_first_start_goes_by_the_presets_table(tmp_path: Path) -> None:
    from qmdctl.presets import load_presets

    preset = load_presets()["spark"]
    settings = settings_of(tmp_path, values={key: value for key, value in preset.settings.items() if "MODEL" in key and "LEN" not in key})
    estimate = make_estimate(settings, State(tmp_path / "state.json"))
    assert estimate.expected == preset.first_start
    assert "spark" in estimate.source
    other = settings_of(tmp_path, values={"EMBED_MODEL": "my/own"})
    assert make_estimate(other, State(tmp_path / "state.json")).expected == {}


def test_plain_lines_one_per_change_and_one_per_half_minute(capsys: pytest.CaptureFixture[str]) -> None:
    with PlainDisplay(Terminal(), Estimate({})) as display:
        for tenth in range(0, 700):
            phase = at("loading") if tenth < 650 else at("ready")
            display.show({"embed": phase}, tenth / 10)
        display.show({"embed": at("ready")}, 500)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == [
        "[0 s] embed: loading weights",
        "[30 s] embed: loading weights",
        "[1 min 00 s] embed: loading weights",
        "[1 min 05 s] embed: ready",
    ]


def test_a_stall_is_said_when_it_begins(capsys: pytest.CaptureFixture[str]) -> None:
    with PlainDisplay(Terminal(), Estimate({})) as display:
        for second in range(70):
            where = Progress(Phase("downloading", done_bytes=5, total_bytes=10, stalled_seconds=second + 2), second)
            display.show({"embed": where}, second)
    lines = capsys.readouterr().err.splitlines()
    assert next(line for line in lines if "stalled" in line).startswith("[58 s] embed: downloading 5 B of 10 B (stalled")


def test_the_live_table_has_a_line_per_service() -> None:
    from rich.console import Console

    table = LiveDisplay(LAST)._table({"embed": at("ready"), "vllm": at("downloading", 7, 3e6, done_bytes=10**9, total_bytes=10**10)}, 12)
    console = Console(width=100)
    with console.capture() as capture:
        console.print(table)
    lines = [line.rstrip() for line in capture.get().splitlines()]
    assert lines[0].startswith("✓  embed  ready")
    assert "vllm   downloading 1.0 GB of 10.0 GB, 3.0 MB/s" in lines[1]
    assert lines[1].endswith("7 s")
    assert "about 53 min left" in lines[2]
