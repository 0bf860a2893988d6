"""The lock that keeps two commands from changing a project at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qmdctl.errors import QmdError
from qmdctl.lock import exclusive

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
