"""A real Ray cluster on this machine: a head that takes no engine, and nodes for one engine each."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.service import ROOT, free_port, poll

RAY = Path(os.environ.get("VIRTUAL_ENV", ROOT / ".venv")) / "bin" / "ray"


def children(pid: int) -> list[int]:
    """All processes below `pid`."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError, IndexError):
                continue
    found, new = [], [pid]
    while new:
        new = [child for child, parent in parents.items() if parent in new]
        found += new
    return found


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


@dataclass
class Cluster:
    """`environment` is that of every node, and so of the engines."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    _nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.token = self.folder / "token"
        self.token.write_text(secrets.token_hex(32))
        self.token.chmod(0o600)
        keep = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        self.environment = {
            **keep,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_memory_monitor_refresh_ms": "0",
            "RAY_task_events_report_interval_ms": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token),
            "OMP_WAIT_POLICY": "passive",
            **self.environment,
        }

    @property
    def address(self) -> str:
        import ray  # not at the top: a machine without it skips these tests

        return f"{ray.util.get_node_ip_address()}:{self.port}"  # type: ignore[no-untyped-call]

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        """`ray start` in the foreground; returns once it says that its node runs."""
        log = self.folder / f"node{len(self._nodes)}.log"
        command = [
            str(RAY), "start", "--block", "--disable-usage-stats", "--object-store-memory=200000000", "--include-log-monitor=false",
            "--log-style=record", *options,
        ]  # fmt: skip
        with log.open("wb") as output:
            node = subprocess.Popen(command, env=self.environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        self._nodes.append(node)

        def runs() -> bool:
            if node.poll() is not None:
                raise RuntimeError(f"`ray start` ended with {node.returncode}:\n{log.read_text()[-2000:]}")
            return "Ray runtime started" in log.read_text()

        poll(runs, 120, f"a Ray node ({log})")
        return node

    def start_head(self) -> subprocess.Popen[bytes]:
        return self.start("--head", f"--port={self.port}", "--num-cpus=0", "--num-gpus=0", "--include-dashboard=false")

    def start_worker(self, engines: int = 1) -> subprocess.Popen[bytes]:
        return self.start(f"--address={self.address}", f"--num-cpus={engines}", "--num-gpus=0")

    def kill(self, node: subprocess.Popen[bytes]) -> None:
        """As a box that loses its power: everything of the node at once."""
        for pid in [node.pid, *children(node.pid)]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        node.wait()

    def silence(self, node: subprocess.Popen[bytes]) -> None:
        """As a box whose cable is pulled: everything of the node stands still, and no connection ends."""
        for pid in [node.pid, *children(node.pid)]:
            os.kill(pid, signal.SIGSTOP)

    def holds(self, node: subprocess.Popen[bytes], pid: int) -> bool:
        """Whether a process is one of the node's."""
        return pid in children(node.pid)

    def close(self) -> None:
        for node in self._nodes:
            if node.poll() is None:
                self.kill(node)
