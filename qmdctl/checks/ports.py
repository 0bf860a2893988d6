"""The ports on 127.0.0.1: free, or held by the stack itself."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from pathlib import Path

from qmdctl.checks.context import Context
from qmdctl.checks.finding import Finding
from qmdctl.errors import QmdError
from qmdctl.monitors import PORT_KEYS

KEYS = {"embed": "EMBED_PORT", "vllm": "VLLM_PORT", **PORT_KEYS}
LISTENING = "0A"  # TCP_LISTEN in /proc/net/tcp (proc(5))


def check(context: Context) -> Iterator[Finding]:
    for service in context.services:
        if service not in KEYS:
            continue
        key = KEYS[service]
        try:
            port = context.settings.port(key)
        except QmdError:
            continue  # env_lint says so
        container = context.containers.get(service)
        if container is not None and container.running and port in container.ports.values():
            yield Finding("ports", "ok", f"{port} is {service}'s own")
        elif free(port):
            yield Finding("ports", "ok", f"{port} is free for {service}")
        else:
            who = holder(port)
            what = f"port {port} is held by {who}" if who else f"port {port} is held by a program of another user"
            fix = f"stop that program, or set {key} to another port in .env" + (
                "" if who else f"; who it is: sudo ss -ltnp 'sport = :{port}'"
            )
            yield Finding("ports", "failure", what, f"{service} cannot listen there", fix)


def free(port: int) -> bool:
    """Whether nobody listens on 127.0.0.1:port. A socket in TIME_WAIT does not count; below 1024 Docker may what this user may not."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError as error:
            return error.errno != errno.EADDRINUSE
    return True


def holder(port: int, proc: Path = Path("/proc")) -> str:
    """The process that listens on the port: "pid 4312 (ollama serve)"; empty where this user may not see it."""
    sockets = {f"socket:[{inode}]" for name in ("tcp", "tcp6") for inode in _inodes(proc / "net" / name, port)}
    for folder in proc.glob("[0-9]*/fd"):
        try:
            if any(str(link.readlink()) in sockets for link in folder.iterdir()):
                command = (folder.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                return f"pid {folder.parent.name} ({command[:80]})"
        except OSError:
            continue
    return ""


def _inodes(table: Path, port: int) -> Iterator[str]:
    try:
        lines = table.read_text().splitlines()[1:]
    except OSError:
        return
    for fields in map(str.split, lines):
        if fields[3] == LISTENING and int(fields[1].rsplit(":", 1)[1], 16) == port:
            yield fields[9]
