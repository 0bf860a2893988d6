"""Parts about the engine and the stack's containers: inspect, logs, images, networks, the sidecars' status."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qmdctl.bundle.parts import Failed, Part, command, failing
from qmdctl.engine import PROJECT_LABEL
from qmdctl.errors import QmdError
from qmdctl.process import run
from qmdctl.tailnet import SIDECARS

ENGINE_SECONDS = 10.0
# Of tailscale's status only the node itself: the other devices of a tailnet, and who owns them, are nobody's business but their owner's.
SELF = ("HostName", "DNSName", "OS", "TailscaleIPs", "Tags", "Online", "KeyExpiry", "Expired", "Relay", "CurAddr", "Active", "InEngine")
STATUS = ("Version", "TUN", "BackendState", "Health", "MagicDNSSuffix", "CertDomains", "ClientVersion")


@dataclass(frozen=True)
class Box:
    """A container of the stack: `name` on the engine, `service` in the compose files."""

    name: str
    service: str
    image: str
    running: bool


def engine_parts(project: str, folder: Path, lines: int) -> Iterator[Part]:
    """All that the engine tells of the Compose project; one part that says why where there is none."""
    yield command("engine/docker-version.txt", ["docker", "version"], seconds=ENGINE_SECONDS, cwd=folder)
    yield command("engine/compose-version.txt", ["docker", "compose", "version"], cwd=folder)
    try:
        boxes = find_boxes(project, folder)
    except QmdError as error:
        why = (error.details or error.message).strip().splitlines()
        yield failing("engine/containers.txt", "docker ps", f"no engine: {why[-1] if why else error.message}")
        return
    yield command("engine/docker-info.txt", ["docker", "info"], cwd=folder)
    filters = ["--filter", f"label={PROJECT_LABEL}={project}"]
    yield command("engine/containers.txt", ["docker", "ps", "--all", "--no-trunc", *filters], cwd=folder)
    yield command("engine/networks.txt", ["docker", "network", "ls", *filters], cwd=folder)
    yield command("engine/volumes.txt", ["docker", "volume", "ls", *filters], cwd=folder)
    yield command("engine/disk.txt", ["docker", "system", "df"], cwd=folder, seconds=30)
    if not boxes:
        return
    names = [box.name for box in boxes]
    images = list(dict.fromkeys(box.image for box in boxes))
    yield command("engine/inspect.json", ["docker", "inspect", *names], cwd=folder)
    yield command("engine/images.json", ["docker", "image", "inspect", *images], cwd=folder)
    if running := [box.name for box in boxes if box.running]:
        yield command("engine/stats.txt", ["docker", "stats", "--no-stream", *running], cwd=folder)
    for box in boxes:
        words = ["docker", "logs", "--timestamps", "--tail", str(lines), box.name]
        yield command(f"logs/{box.service}.txt", words, cwd=folder, seconds=30, timestamps=True)
        if box.service in SIDECARS and box.running:
            yield from sidecar_parts(box, folder)


def find_boxes(project: str, folder: Path) -> list[Box]:
    """QmdError where no engine answers."""
    form = '{{.Names}}\t{{.Label "com.docker.compose.service"}}\t{{.Image}}\t{{.State}}'
    words = ["docker", "ps", "--all", "--filter", f"label={PROJECT_LABEL}={project}", "--format", form]
    done = run(words, cwd=folder, timeout_seconds=ENGINE_SECONDS)
    rows = [line.split("\t") for line in done.stdout.splitlines() if line.count("\t") == 3]
    return [Box(name, service or name, image, state == "running") for name, service, image, state in rows]


def sidecar_parts(box: Box, folder: Path) -> Iterator[Part]:
    exec_in = ["docker", "exec", box.name]
    words = [*exec_in, "timeout", "5", "tailscale", "status", "--json", "--peers=false"]
    yield Part(f"tailnet/{box.service}-status.json", f"{' '.join(words)}, the node itself alone", lambda: own_status(words, folder))
    serve = [*exec_in, "timeout", "5", "tailscale", "serve", "status", "--json"]
    yield command(f"tailnet/{box.service}-serve.json", serve, cwd=folder)


def own_status(words: Sequence[str], folder: Path | None = None) -> bytes:
    """What `tailscale status --json` says of the node itself."""
    try:
        done = run(words, cwd=folder, check=False, timeout_seconds=ENGINE_SECONDS)
    except QmdError as error:
        raise Failed(error.message) from None
    return shortened(done.stdout, done.stderr)


def shortened(text: str, said: str = "") -> bytes:
    """Failed where it is not JSON."""
    try:
        status: dict[str, Any] = json.loads(text)
        own = status.get("Self") or {}
        kept = {name: status[name] for name in STATUS if name in status}
        kept["Self"] = {name: own[name] for name in SELF if name in own}
        kept["Peers"] = f"{len(status.get('Peer') or {})} left out"
    except (ValueError, AttributeError):
        raise Failed("tailscaled did not answer", said.encode()) from None
    return json.dumps(kept, indent=1, ensure_ascii=False).encode()
