"""Containers that have the stack's fixed names and are not the stack's own: the seed's `docker run --name qmd-vllm …`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qmdctl.engine import PROJECT_LABEL, SERVICE_LABEL, Engine, answering
from qmdctl.redaction import command_lines

NAMES = ("qmd-embed", "qmd-vllm")
FOLDER_LABEL = "com.docker.compose.project.working_dir"
CACHE = "/root/.cache/huggingface"


@dataclass(frozen=True)
class NativeContainer:
    """`command`: entrypoint and arguments together. `port`: on the host, with the address that it is published on."""

    name: str
    id: str
    image: str
    command: tuple[str, ...]
    running: bool
    state: str
    restart: str  # no, always, unless-stopped, on-failure[:N]
    removes_itself: bool  # docker run --rm
    ports: dict[str, tuple[str, int]]  # "8000/tcp": (address, port) on the host
    host_network: bool
    mounts: tuple[dict[str, Any], ...]
    gpus: tuple[str, ...]
    compose_project: str
    environment: dict[str, str] = field(default_factory=dict, repr=False)

    def cache(self) -> str:
        """The folder of the host that is its Hugging Face cache; empty where it has none."""
        inside = self.environment.get("HF_HOME") or CACHE
        for mount in self.mounts:
            if mount.get("Type") == "bind" and str(mount.get("Destination", "")).rstrip("/") == inside.rstrip("/"):
                return str(mount["Source"])
            if mount.get("Type") == "bind" and str(mount.get("Destination", "")).rstrip("/") == str(Path(inside).parent):
                return str(Path(str(mount["Source"])) / Path(inside).name)
        return ""

    def payload(self) -> dict[str, object]:
        return {
            "container": self.name,
            "id": self.id[:12],
            "image": self.image,
            "command": command_lines.command(self.command),
            "state": self.state,
            "restart": self.restart,
            "ports": {inside: f"{address}:{port}" for inside, (address, port) in self.ports.items()},
            "cache": self.cache() or None,
        }


def find_containers(engine: Engine, project: str, folder: Path) -> list[NativeContainer]:
    """Those that hold the stack's names and belong to no copy of it: see `ours`."""
    found = []
    for name in NAMES:
        inspect = inspected(engine, name)
        if inspect and not ours(inspect, project, folder):
            found.append(parse(inspect))
    return found


def inspected(engine: Engine, name: str) -> dict[str, Any] | None:
    """`docker inspect` of one container by its exact name or id; None where there is none."""
    from docker.errors import NotFound

    with answering():
        try:
            inspect: dict[str, Any] = engine.client.api.inspect_container(name)
        except NotFound:
            return None
    # Docker takes the beginning of an id for a name as well.
    return inspect if name in (inspect["Name"].lstrip("/"), inspect["Id"]) else None


def ours(inspect: Mapping[str, Any], project: str, folder: Path) -> bool:
    """Of this project, or a service of this stack that another project started, whose folder is elsewhere."""
    labels = inspect["Config"].get("Labels") or {}
    if re.fullmatch(r"embed|vllm|ts-.+", labels.get(SERVICE_LABEL) or ""):
        return True
    return labels.get(PROJECT_LABEL) == project or labels.get(FOLDER_LABEL) == str(folder)


def parse(inspect: Mapping[str, Any]) -> NativeContainer:
    config, host = inspect["Config"], inspect["HostConfig"]
    policy = host.get("RestartPolicy") or {}
    retries = policy.get("MaximumRetryCount") or 0
    restart = policy.get("Name") or "no"
    requests = host.get("DeviceRequests") or []
    return NativeContainer(
        name=inspect["Name"].lstrip("/"),
        id=inspect["Id"],
        image=config["Image"],
        command=(*(config.get("Entrypoint") or ()), *(config.get("Cmd") or ())),
        running=bool(inspect["State"].get("Running")),
        state=inspect["State"]["Status"],
        restart=f"{restart}:{retries}" if retries else restart,
        removes_itself=bool(host.get("AutoRemove")),
        ports={
            inside: (hosts[0].get("HostIp", ""), int(hosts[0]["HostPort"]))
            for inside, hosts in (host.get("PortBindings") or {}).items()
            if hosts and hosts[0].get("HostPort")
        },
        host_network=host.get("NetworkMode") == "host",
        mounts=tuple(inspect.get("Mounts") or ()),
        gpus=tuple(name for request in requests for name in request.get("DeviceIDs") or ()),
        compose_project=(config.get("Labels") or {}).get(PROJECT_LABEL, ""),
        environment=dict(entry.partition("=")[::2] for entry in config.get("Env") or []),
    )
