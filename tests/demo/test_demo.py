"""`python -m demo` for real: both servers, all three calls, and nothing left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from demo import processes, rankers
from tests.support.service import ROOT, poll

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the demo's processes in /proc")


class Demo:
    """One run of the demo. Its processes are known by a mark in their environment."""

    def __init__(self, **environment: str) -> None:
        self.mark = f"DEMO_TEST_MARK={uuid.uuid4().hex}"
        name, value = self.mark.split("=")
        kept = {k: v for k, v in os.environ.items() if k not in ("PORT", "KEEP")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "demo"],
            cwd=ROOT,
            env={**kept, "COLUMNS": "200", "DEVICE": "cpu", name: value, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def finish(self, seconds: float = 240) -> str:
        output, _ = self.process.communicate(timeout=seconds)
        return output

    def processes(self) -> set[int]:
        """Every living process of this run, the demo itself included."""
        found = set()
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            try:
                if self.mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found.add(int(folder.name))
            except OSError:  # gone meanwhile, or another user's
                continue
        return found

    def servers(self) -> list[str]:
        """Command lines of the servers that run."""
        lines = []
        for pid in self.processes() - {self.process.pid}:
            try:
                lines.append(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
        return lines

    def end(self) -> None:
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)


def block(output: str) -> dict[str, Any]:
    """The YAML that the demo prints for the client."""
    start = output.index("remote:\n")
    lines = output[start:].splitlines()
    inner = [line for line in lines[1:] if line.startswith("  ")]
    return yaml.safe_load("\n".join([lines[0], *inner]))["remote"]  # type: ignore[no-any-return]


def test_demo_searches_names_its_reranker_and_leaves_nothing() -> None:
    demo = Demo()
    try:
        output = demo.finish()
        assert demo.process.returncode == 0, output
        scores = [float(score) for score in re.findall(r"^\d\. (\d\.\d{3})  docs/\w+\.md § .", output, re.MULTILINE)]
        assert len(scores) == 5
        assert scores == sorted(scores, reverse=True)
        assert all(0 <= score <= 1 for score in scores)
        assert f"Reranker: {rankers.best(rankers.Table.load().rows).name}" in output
        assert re.search(r"embed docs/ +│ +\d+\.\d\d │ \d+ chunks/s, \d+ tokens/s", output)
        assert re.search(r"embedding docs/ ━+ (\d+)/\1 chunks", output)
        remote = block(output)
        assert remote["url"] == remote["embed_url"] == remote["generation_url"]
        assert set(remote["models"]) == {"embed", "generate", "rerank"}
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{remote['url']}/livez", trust_env=False)
        poll(lambda: not demo.processes(), 20, "the end of every process")
    finally:
        demo.end()


def test_keep_leaves_both_servers_and_its_command_stops_them() -> None:
    port = processes.free_port()
    demo = Demo(KEEP="1", PORT=str(port))
    try:
        output = demo.finish()
        assert demo.process.returncode == 0, output
        url = block(output)["url"]
        assert url == f"http://127.0.0.1:{port}"
        assert httpx.get(f"{url}/health", trust_env=False).status_code == 200
        chat = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 4}
        assert httpx.post(f"{url}/v1/chat/completions", json=chat, timeout=60, trust_env=False).status_code == 200
        command = output.strip().splitlines()[-1]
        assert re.fullmatch(r"kill \d+ \d+", command)
        subprocess.run(command, shell=True, check=True)
        poll(lambda: not demo.processes(), 40, "the end of every process")
    finally:
        demo.end()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_start_leaves_nothing(number: signal.Signals, status: int) -> None:
    demo = Demo()
    try:
        poll(lambda: any("embed_service serve" in line for line in demo.servers()), 60, "the service's process")
        demo.process.send_signal(number)
        output = demo.finish(60)
        assert demo.process.returncode == status, output
        poll(lambda: not demo.processes(), 20, "the end of every process")
    finally:
        demo.end()


def test_a_port_in_use_is_said_and_leaves_nothing() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        demo = Demo(PORT=port)
        try:
            output = demo.finish()
            assert demo.process.returncode == 1
            assert "cannot listen" in output and port in output
            poll(lambda: not demo.processes(), 20, "the end of every process")
        finally:
            demo.end()
