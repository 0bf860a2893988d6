"""The lock that keeps two commands from changing a project at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qmdctl.errors import QmdError
from qmdctl.lock import HELD, exclusive
from tests.qmdctl.conftest import Run

HOLD = """
import sys
from pathlib import Path
from qmdctl.lock import exclusive
with exclusive(Path(sys.argv[1]), "upgrade"):
    print("held", flush=True)
    input()
"""


def test_a_second_command_is_told_of_the_first(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        with pytest.raises(QmdError, match=f"qmdctl upgrade, process {first.pid}"), exclusive(tmp_path, "rollback"):
            pytest.fail("both hold it")
        first.communicate("\n")
    with exclusive(tmp_path, "rollback"):
        pass


def test_a_killed_holder_leaves_no_lock(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        first.kill()
        first.wait()
    with exclusive(tmp_path, "rollback"), pytest.raises(QmdError, match="qmdctl rollback"), exclusive(tmp_path, "upgrade"):
        pytest.fail("both hold it")


def test_a_full_disk_costs_the_name_alone(tmp_path: Path) -> None:
    """Here no file of the holder's may grow."""
    full = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n{HOLD}"
    with subprocess.Popen([sys.executable, "-c", full, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        with pytest.raises(QmdError, match="it has not said which it is"), exclusive(tmp_path, "rollback"):
            pytest.fail("both hold it")
        first.communicate("\n")
    assert first.returncode == 0


def test_a_lock_file_that_may_only_be_read_locks_as_well(tmp_path: Path) -> None:
    """As root's after a sudo."""
    file = tmp_path / ".qmdctl/lock"
    file.parent.mkdir()
    file.touch()
    file.chmod(0o444)
    mortal = ["setpriv", "--bounding-set=-all"] if os.geteuid() == 0 else []  # a root that file modes bind
    command = [*mortal, sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        with pytest.raises(QmdError, match="Another command"), exclusive(tmp_path, "rollback"):
            pytest.fail("both hold it")
        first.communicate("\n")
    assert file.read_text() == ""
    with exclusive(tmp_path, "rollback"):
        second = subprocess.run(command, input="\n", capture_output=True, text=True, check=False)
    assert "qmdctl rollback, process" in second.stderr


def test_where_no_file_can_be_made_there_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / ".qmdctl").write_text("a file where the folder should be")
    with exclusive(tmp_path, "up"), exclusive(tmp_path, "up"):
        pass


@pytest.mark.parametrize("verb", ["up", "start", "stop", "restart", "down"])
def test_what_changes_the_stack_waits_for_the_holder_but_not_in_its_children(qmdctl: Run, folder: Path, verb: str) -> None:
    (folder / ".env").touch()
    with exclusive(folder, "models use generate"):
        refused = qmdctl("-C", str(folder), verb)
        assert refused.returncode == 1, refused.stderr
        assert f"qmdctl models use generate, process {os.getpid()}" in refused.stderr
        child = qmdctl("-C", str(folder), verb, **{HELD: "1"})
    assert child.returncode == 3, child.stderr
    assert "No Docker engine" in child.stderr
