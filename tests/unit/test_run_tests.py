"""`make test` without arguments is two runs at once, whose failures both count."""

from __future__ import annotations

import sys

import pytest

from scripts import run_tests


@pytest.mark.parametrize(("statuses", "expected"), [((0, 0), 0), ((1, 0), 1), ((0, 2), 2), ((3, 4), 3)])
def test_two_runs(statuses: tuple[int, int], expected: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """In place of pytest a program that says which tests it was given."""

    def command(*arguments: str) -> list[str]:
        markers = arguments[arguments.index("-m") + 1]
        status = statuses[list(run_tests.RUNS.values()).index(markers)]
        return [sys.executable, "-c", f"import sys; print({f'ran {markers}'!r}); sys.exit({status})"]

    monkeypatch.setattr(run_tests, "command", command)
    assert run_tests.main([]) == expected
    shown = capfd.readouterr().out
    for markers in run_tests.RUNS.values():
        assert f"ran {markers}\n" in shown
    assert shown.count(": passed") == statuses.count(0)


def test_arguments_make_one_plain_run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(run_tests, "command", lambda *arguments: [sys.executable, "-c", f"print({arguments!r})"])
    assert run_tests.main(["-k", "name"]) == 0
    assert capfd.readouterr().out == "('-k', 'name')\n"
