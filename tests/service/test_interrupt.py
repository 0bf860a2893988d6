"""Ctrl-C."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.support.service import ServiceProcess


def test_ctrl_c_ends_it_without_a_traceback(tmp_path: Path) -> None:
    with ServiceProcess({}, tmp_path / "service.log") as service:
        service.wait_healthy()
        assert service.process is not None
        service.process.send_signal(signal.SIGINT)
        assert service.process.wait(30) == 0
    log = service.log.read_text()
    assert '"stopped"' in log
    assert "Traceback" not in log
