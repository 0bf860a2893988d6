"""The one function that runs programs, and the one class that prints."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qmdctl.errors import ConfigurationError, MissingError
from qmdctl.process import ProcessError, run, stream
from qmdctl.startup.compose_up import run_shown
from qmdctl.terminal import Terminal, human_bytes, human_seconds, table
from tests.support.service import ROOT, poll


def test_output_and_status_are_kept(tmp_path: Path) -> None:
    done = run(
        [sys.executable, "-c", "import os, sys; print(os.getcwd(), os.environ['X']); sys.exit(3)"],
        cwd=tmp_path,
        environment={"X": "1"},
        check=False,
    )
    assert (done.returncode, done.stdout) == (3, f"{tmp_path} 1\n")


def test_a_failure_carries_the_command_its_status_and_its_stderr() -> None:
    with pytest.raises(ProcessError) as caught:
        run([sys.executable, "-c", "import sys; sys.exit('broken')"])
    assert caught.value.completed.returncode == 1
    assert caught.value.details == "broken\n"
    with pytest.raises(ProcessError, match="status 4"):
        list(stream([sys.executable, "-c", "print(1); import sys; sys.exit(4)"]))


def test_a_program_that_is_not_there_or_hangs() -> None:
    with pytest.raises(MissingError, match="no-such-program"):
        run(["no-such-program"])
    with pytest.raises(ProcessError, match="124"):
        run([sys.executable, "-c", "import time; time.sleep(60)"], timeout_seconds=0.2)


def test_a_shown_program_can_be_given_a_time(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for tty in (False, True):
        done = run_shown([sys.executable, "-c", "print('a')"], tmp_path, {}, tty, 20)
        assert (done.returncode, done.stderr) == (0, "a\n")
        with pytest.raises(TimeoutError):
            run_shown([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path, {}, tty, 0.3)
    assert "a" in capfd.readouterr().err


SLOW_TO_END = """
import signal, sys, time
from pathlib import Path

def end(*_):
    Path("ending").touch()
    while not Path("may-end").exists():
        time.sleep(0.01)
    Path("ended").touch()
    sys.exit(1)

signal.signal(signal.SIGTERM, end)
print("on", flush=True)
signal.pause()
"""
SHOWN = """
import sys
from pathlib import Path
from qmdctl.startup.compose_up import run_shown

run_shown([sys.executable, "slow.py"], Path(), {}, False)
"""


def ignores_ctrl_c(process: int) -> bool:
    status = Path(f"/proc/{process}/status").read_text()
    ignored = next(line.split()[1] for line in status.splitlines() if line.startswith("SigIgn"))
    return bool(int(ignored, 16) >> (signal.SIGINT - 1) & 1)


def test_ctrl_c_twice_waits_for_a_shown_program(tmp_path: Path) -> None:
    """From a terminal it comes to the whole group, and from who runs this program once more."""
    (tmp_path / "slow.py").write_text(SLOW_TO_END)
    there = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", SHOWN], cwd=tmp_path, env=there, stderr=subprocess.PIPE) as one:
        assert one.stderr is not None
        try:
            assert one.stderr.readline() == b"on\n"
            one.send_signal(signal.SIGINT)
            poll((tmp_path / "ending").exists, 60, "the program to hear of it")
            assert one.poll() is None
            assert ignores_ctrl_c(one.pid)
            one.send_signal(signal.SIGINT)
        finally:
            (tmp_path / "may-end").touch()
        said = one.communicate(timeout=60)[1].decode()
    assert (tmp_path / "ended").exists()
    assert "KeyboardInterrupt" in said


def test_lines_are_streamed_as_they_come() -> None:
    lines = stream([sys.executable, "-uc", "print('a'); print('b'); input()"])
    assert next(lines) == "a"


def test_results_go_to_stdout_and_notes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal()
    terminal.note("on the way")
    terminal.result("done", {"x": 1})
    terminal.error(ConfigurationError("wrong", "mend it"))
    out, err = capsys.readouterr()
    assert out == "done\n"
    assert err == "on the way\n✗ wrong\n  → mend it\n"
    Terminal(json_output=True).result("done", {"x": 1})
    assert capsys.readouterr().out == '{\n  "x": 1\n}\n'


def test_numbers_for_people() -> None:
    assert [human_bytes(n) for n in (5, 1500, 2.5e6, 8.04e9)] == ["5 B", "1.5 kB", "2.5 MB", "8.0 GB"]
    assert [human_seconds(n) for n in (3.2, 59.7, 125, 4210)] == ["3 s", "1 min 00 s", "2 min 05 s", "1 h 10 min"]
    assert table([["a", "b"], ["long", "c"]], ["X", "Y"]) == "X     Y\na     b\nlong  c"
