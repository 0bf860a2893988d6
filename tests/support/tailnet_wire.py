"""Looking at, and meddling with, the processes and connections of a container from outside of it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.qmdctl_cli import docker


def process_of(container: str) -> int:
    """The process id on this machine of the container's first process."""
    return int(docker("inspect", "--format", "{{.State.Pid}}", container))


def processes(container: str, name: str) -> list[int]:
    """The process ids on this machine of the container's processes of that name."""
    lines = docker("top", container, "-eo", "pid,comm").splitlines()[1:]
    return [int(line.split()[0]) for line in lines if line.split()[1] == name]


def in_network_of(container: str, *command: str) -> str:
    """A program of this machine in the network namespace of a container."""
    full = ["nsenter", "--target", str(process_of(container)), "--net", *command]
    environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    return subprocess.run(full, capture_output=True, text=True, check=True, env=environment).stdout


def connections(container: str, port: int, state: str = "established") -> set[str]:
    """The other ends (address and port) of the TCP connections to `port` of the container that are in `state`."""
    lines = in_network_of(container, "ss", "-Htn", "state", state, f"sport = :{port}").splitlines()
    return {line.split()[-1] for line in lines}


@contextmanager
def fins_held_back(container: str) -> Iterator[None]:
    """The container can close connections, but nobody hears of it."""
    rule = ["OUTPUT", "-p", "tcp", "--tcp-flags", "FIN", "FIN", "-j", "DROP"]
    in_network_of(container, "iptables", "-A", *rule)
    try:
        yield
    finally:
        in_network_of(container, "iptables", "-D", *rule)
