"""The Ray node of a box: the head beside the HTTP process, or `python -m embed_service.cluster.node` on every other box.

Ray asks nobody who he is unless it is given a token, and whoever reaches its ports runs programs: so the ports are few and fixed, for a
private network, and RAY_AUTH_TOKEN_PATH is demanded where the node has an address of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from embed_service.engine.__main__ import die_with_parent
from embed_service.errors import SettingsError
from embed_service.settings import Settings, load_settings

GCS_PORT = 6379
FIRST_WORKER_PORT, LAST_WORKER_PORT = 6390, 6399
PROBE_SECONDS = 5.0
FIXED_PORTS = {
    "--node-manager-port": 6380,
    "--object-manager-port": 6381,
    "--runtime-env-agent-port": 6382,
    "--dashboard-agent-listen-port": 6383,
    "--dashboard-agent-grpc-port": 6384,
    "--metrics-export-port": 6385,
    "--min-worker-port": FIRST_WORKER_PORT,
    "--max-worker-port": LAST_WORKER_PORT,
}


def ray_environment(settings: Settings) -> dict[str, str]:
    """Of every process of Ray's: nothing sent home, no killing for memory (the engine refuses by itself), the token where there is one."""
    environment = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_memory_monitor_refresh_ms": "0",
        # Before a cluster's first driver is let in, as many workers as there are processors, for which there are not the ports.
        "RAY_prestart_worker_first_driver": "0",
        "RAY_DISABLE_IMPORT_WARNING": "1",
        "RAY_gcs_rpc_server_reconnect_timeout_s": "20",  # a driver without its head ends after this, and another waits for the next head
        # A box that goes silent, as without power, is taken for dead after about 12 s; Ray's own is a minute.
        "RAY_health_check_initial_delay_ms": "5000",
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_timeout_ms": "3000",
        "RAY_health_check_failure_threshold": "3",
        "RAY_BACKEND_LOG_LEVEL": "error",
        "RAY_event_stats": "0",
        "RAY_task_events_report_interval_ms": "0",  # a history of every call, for a dashboard that nobody starts
        "AUTOSCALER_UPDATE_INTERVAL_S": "3600",  # it has nothing to scale, and logs a page each time
        "RAY_AUTH_MODE": "disabled",
    }
    if settings.ray_auth_token_path:
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": settings.ray_auth_token_path}
    return environment


def start_command(settings: Settings, head: bool) -> list[str]:
    """`ray start` for this box. Raises SettingsError where an address or the token is missing."""
    if not settings.ray_node_ip:
        raise SettingsError("RAY_NODE_IP is not set: it is this box's address on the private network of the boxes.")
    token = settings.ray_auth_token_path
    if not token or not os.path.isfile(token) or not Path(token).read_text(encoding="utf-8").strip():
        raise SettingsError(
            "RAY_AUTH_TOKEN_PATH names no file with a token: without one everybody who reaches Ray's ports runs programs here. "
            "Make one with `openssl rand -hex 32` and copy it to every box."
        )
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--block",
        f"--node-ip-address={settings.ray_node_ip}",
        f"--object-store-memory={settings.ray_object_store_mb * 1_000_000}",
        "--disable-usage-stats", "--include-log-monitor=false",
        *(f"{name}={port}" for name, port in FIXED_PORTS.items()),
    ]  # fmt: skip
    if settings.ray_node_cpus is not None:
        command.append(f"--num-cpus={settings.ray_node_cpus}")
    if settings.ray_node_gpus is not None:
        command.append(f"--num-gpus={settings.ray_node_gpus}")
    if head:
        return [*command, "--head", f"--port={GCS_PORT}", "--include-dashboard=false"]
    if not settings.ray_address:
        raise SettingsError(f"RAY_ADDRESS is not set: it is the head box's RAY_NODE_IP and port, such as 192.168.1.10:{GCS_PORT}.")
    return [*command, f"--address={settings.ray_address}"]


def environment_of_node(settings: Settings) -> dict[str, str]:
    """The process environment of `ray start`: its workers find this project wherever they are started, and log to this log."""
    root = Path(__file__).resolve().parents[2]
    python_path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, **ray_environment(settings), "PYTHONPATH": python_path, "RAY_LOG_TO_STDERR": "1"}


class Head:
    """A cluster that begins with this box. It ends with this process, however that ends."""

    def __init__(self, settings: Settings) -> None:
        """Raises SettingsError or OSError where `ray start` would not do."""
        start_command(settings, head=True)
        self.address = f"{settings.ray_node_ip}:{GCS_PORT}"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Returns before it answers. To be called from the main thread, with whose end the kernel ends it."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "embed_service.cluster.node", "--head", stdin=asyncio.subprocess.DEVNULL, stdout=2
        )

    async def ended(self) -> None:
        assert self._process is not None
        await self._process.wait()


def taken_port() -> int | None:
    """The first of the head's ports on which somebody listens: a head that is ending, or another Ray node of this box."""
    for port in (GCS_PORT, *(port for name, port in FIXED_PORTS.items() if "worker" not in name)):
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # else a connection that was closed lately counts
            try:
                sock.bind(("", port))
            except OSError:
                return port
    return None


def probe(settings: Settings) -> int:
    """The container's healthcheck: 0 while this box's node answers on its port. One line of JSON, as the other services print."""
    try:
        socket.create_connection((settings.ray_node_ip or "", FIXED_PORTS["--node-manager-port"]), PROBE_SECONDS).close()
    except OSError as error:
        line = {"status": "loading", "phase": "starting", "error": f"the Ray node does not answer: {error}"}
    else:
        line = {"status": "ok", "phase": "ready"}
    sys.stdout.write(json.dumps(line) + "\n")
    return 0 if line["status"] == "ok" else 1


def main(arguments: Sequence[str]) -> int:
    """The node of a box, until it is asked to end or the head is gone. Exit status 2 for unusable settings.

    `--head`: the head, which ends with its parent; what it started follows, as Ray ties each of its processes to the one that started it.
    """
    head = "--head" in arguments
    try:
        settings = load_settings()
        if "--probe" in arguments:
            return probe(settings)
        command = start_command(settings, head)
    except SettingsError as error:
        sys.stderr.write(f"embed-service: {error}\n")
        return 2
    if head:
        die_with_parent()  # it holds over an exec
    os.execve(command[0], command, environment_of_node(settings))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
