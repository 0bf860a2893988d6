"""Docker's API, for reading only: the containers of the stack, their health, their logs, and the engine's own facts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from qmdctl.errors import MissingError, QmdError

if TYPE_CHECKING:
    import docker

PROJECT_LABEL = "com.docker.compose.project"
SERVICE_LABEL = "com.docker.compose.service"
ANSWER_SECONDS = 10


@dataclass(frozen=True)
class Container:
    """One container as Docker's inspect shows it. `probe` is the JSON line that its healthcheck printed last, {} when there is none."""

    service: str
    name: str
    id: str
    image: str
    state: str  # created, running, restarting, exited, paused, dead
    health: str  # "", starting, healthy, unhealthy
    exit_code: int
    oom_killed: bool
    error: str  # why Docker could not start it
    restart_count: int
    started_at: datetime | None
    finished_at: datetime | None
    pid: int
    probe: dict[str, Any] = field(default_factory=dict)
    probe_text: str = ""  # what the healthcheck printed last, as it is

    @property
    def running(self) -> bool:
        return self.state == "running"

    @property
    def ready(self) -> bool:
        return self.running and self.health == "healthy"


class Engine:
    """The engine that `docker` itself would talk to: DOCKER_HOST, else DOCKER_CONTEXT, else the current context."""

    def __init__(self, client: docker.DockerClient, host: str) -> None:
        self.client = client
        self.host = host

    @classmethod
    def connect(cls) -> Engine:
        """MissingError when there is no engine, it does not answer, or this user may not talk to it; each with its fix."""
        import docker
        from docker.errors import DockerException

        host, tls = _endpoint()
        try:
            client = docker.DockerClient(
                base_url=host, tls=tls or False, timeout=ANSWER_SECONDS, version="auto", use_ssh_client=host.startswith("ssh://")
            )
        except (DockerException, OSError, ValueError) as error:
            raise _unreachable(host, error) from None
        return cls(client, host)

    def info(self) -> dict[str, Any]:
        """`docker info`: ServerVersion, Architecture, DockerRootDir, Runtimes, …"""
        info: dict[str, Any] = self.client.info()
        return info

    def containers(self, project: str) -> dict[str, Container]:
        """The stack's containers by service, whatever their state; one-off containers of `compose run` are left out."""
        from docker.errors import NotFound

        found = {}
        filters = {"label": [f"{PROJECT_LABEL}={project}", "com.docker.compose.oneoff=False"]}
        for summary in self.client.api.containers(all=True, filters=filters):
            try:
                container = _container(self.client.api.inspect_container(summary["Id"]))
            except NotFound:
                continue  # removed in between
            found[container.service] = container
        return found

    def logs(self, container: Container, *, tail: int = 200, since: datetime | None = None) -> list[str]:
        """The last lines of its log, both streams in order, without timestamps."""
        from docker.errors import NotFound

        try:
            raw = self.client.api.logs(container.id, stdout=True, stderr=True, tail=tail, since=since)
        except NotFound:
            return []
        return raw.decode("utf-8", "replace").splitlines()

    def follow(self, container: Container, *, since: datetime | None = None) -> Iterator[str]:
        """Its log line by line until the container ends."""
        stream = self.client.api.logs(container.id, stdout=True, stderr=True, stream=True, follow=True, since=since)
        rest = b""
        for part in stream:
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                yield line.decode("utf-8", "replace")
        if rest:
            yield rest.decode("utf-8", "replace")


def _container(inspect: dict[str, Any]) -> Container:
    state = inspect["State"]
    health = state.get("Health") or {}
    log = health.get("Log") or []
    text = log[-1].get("Output", "").strip() if log else ""
    return Container(
        service=inspect["Config"]["Labels"].get(SERVICE_LABEL, inspect["Name"].lstrip("/")),
        name=inspect["Name"].lstrip("/"),
        id=inspect["Id"],
        image=inspect["Config"]["Image"],
        state=state["Status"],
        health=health.get("Status", "") if health.get("Status") != "none" else "",
        exit_code=state["ExitCode"],
        oom_killed=state["OOMKilled"],
        error=state.get("Error", ""),
        restart_count=inspect.get("RestartCount", 0),
        started_at=_time(state.get("StartedAt", "")),
        finished_at=_time(state.get("FinishedAt", "")),
        pid=state.get("Pid", 0),
        probe=_json_line(text),
        probe_text=text,
    )


def _json_line(text: str) -> dict[str, Any]:
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            try:
                data = json.loads(line)
            except ValueError:
                return {}
            return data if isinstance(data, dict) else {}
    return {}


def _time(text: str) -> datetime | None:
    """Docker writes nanoseconds, and the year 1 for never."""
    if not text or text.startswith("0001-"):
        return None
    seconds, _, rest = text.partition(".")
    fraction = rest.rstrip("Z")[:6] or "0"
    return datetime.fromisoformat(seconds.rstrip("Z")).replace(microsecond=int(fraction.ljust(6, "0")), tzinfo=UTC)


def _endpoint() -> tuple[str, Any]:
    """The address and the TLS settings that the docker command would use."""
    from docker.context import ContextAPI
    from docker.utils import kwargs_from_env

    if os.environ.get("DOCKER_HOST"):
        found = kwargs_from_env()
        return str(found.get("base_url", os.environ["DOCKER_HOST"])), found.get("tls")
    name = os.environ.get("DOCKER_CONTEXT") or None
    try:
        context = ContextAPI.get_context(name)
    except Exception as error:
        raise MissingError(f"Docker's context {name or 'in use'} cannot be read: {error}", "docker context ls") from None
    if context is None:
        raise MissingError(f"Docker has no context {name!r}", "docker context ls, then: docker context use NAME")
    return str(context.Host), context.TLSConfig


def _unreachable(host: str, error: Exception) -> QmdError:
    text = str(error)
    if "Permission denied" in text or "PermissionError" in text:
        return MissingError(
            f"Docker at {host} does not let this user in (permission denied on its socket)",
            "sudo usermod -aG docker $USER, then log in again",
        )
    if "No such file" in text or "FileNotFoundError" in text:
        return MissingError(
            f"No Docker engine at {host}: its socket is not there", "start it: sudo systemctl start docker (or install Docker)"
        )
    if "refused" in text:
        return MissingError(f"No Docker engine listens at {host}", "start it: sudo systemctl start docker")
    return MissingError(f"The Docker engine at {host} does not answer: {text[:300]}", "docker context ls; docker info")
