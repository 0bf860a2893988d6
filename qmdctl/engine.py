"""Docker's API, for reading only: the containers of the stack, their health, their logs, and the engine's own facts."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from qmdctl.errors import MissingError, QmdError

if TYPE_CHECKING:
    import docker

PROJECT_LABEL = "com.docker.compose.project"
SERVICE_LABEL = "com.docker.compose.service"
VOLUME_LABEL = "com.docker.compose.volume"
FILES_LABEL, FOLDER_LABEL = "com.docker.compose.project.config_files", "com.docker.compose.project.working_dir"
HASH_LABEL = "com.docker.compose.config-hash"
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
    config_hash: str = ""  # of the configuration that Compose made it from
    compose_files: tuple[str, ...] = ()  # these files, as seen from the project's folder
    probe: dict[str, Any] = field(default_factory=dict)
    probe_text: str = ""  # what the healthcheck printed last, as it is
    ports: dict[str, int] = field(default_factory=dict)  # "8001/tcp": the port on the host
    environment: dict[str, str] = field(default_factory=dict, repr=False)

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
        with answering():
            info: dict[str, Any] = self.client.info()
        return info

    def version(self) -> str:
        with answering():
            return str(self.client.version()["Version"])

    def containers(self, project: str) -> dict[str, Container]:
        """The stack's containers by service, whatever their state; one-off containers of `compose run` are left out."""
        from docker.errors import NotFound

        found = {}
        filters = {"label": [f"{PROJECT_LABEL}={project}", "com.docker.compose.oneoff=False"]}
        with answering():
            for summary in self.client.api.containers(all=True, filters=filters):
                try:
                    container = _container(self.client.api.inspect_container(summary["Id"]))
                except NotFound:
                    continue  # removed in between
                found[container.service] = container
        return found

    def has_image(self, name: str) -> bool:
        """Whether the image is on this engine; a name that is none is not."""
        from docker.errors import APIError

        with answering():
            try:
                self.client.images.get(name)
            except APIError as error:
                if error.is_client_error():
                    return False
                raise
        return True

    def has_volume(self, name: str) -> bool:
        from docker.errors import NotFound

        with answering():
            try:
                self.client.volumes.get(name)
            except NotFound:
                return False
        return True

    def volumes(self, project: str, declared: Iterable[str]) -> dict[str, str]:
        """The stack's volumes: name in the compose file → name on the engine.

        By Compose's labels, and by the names that the compose files declare: a restored volume was made by `docker run`, without labels.
        """
        named = {name: f"{project}_{name}" for name in declared if self.has_volume(f"{project}_{name}")}
        with answering():
            found = self.client.volumes.list(filters={"label": f"{PROJECT_LABEL}={project}"})
            return named | {(one.attrs.get("Labels") or {}).get(VOLUME_LABEL, one.name): one.name for one in found}

    def execute(self, container: Container, command: list[str]) -> str:
        """What a short command in the running container prints on stdout; empty where the container has ended.

        The command only reads: what changes something goes through `docker compose`.
        """
        from docker.errors import APIError

        with answering():
            try:
                made = self.client.api.exec_create(container.id, command, stderr=False)
                raw: bytes = self.client.api.exec_start(made["Id"])
            except APIError as error:
                if error.is_client_error():
                    return ""
                raise
        return raw.decode("utf-8", "replace")

    def logs(self, container: Container, *, tail: int = 200, since: datetime | None = None) -> list[str]:
        """The last lines of its log, both streams in order, without timestamps; of one that is gone, or going, none."""
        from docker.errors import APIError

        with answering():
            try:
                raw = self.client.api.logs(container.id, stdout=True, stderr=True, tail=tail, since=since)
            except APIError as error:
                if error.is_client_error():
                    return []
                raise
        return raw.decode("utf-8", "replace").splitlines()


@contextlib.contextmanager
def answering() -> Iterator[None]:
    """What the SDK and its HTTP client raise when an engine answers with an error or not at all, as MissingError."""
    from docker.errors import DockerException
    from requests.exceptions import RequestException

    try:
        yield
    except (RequestException, DockerException) as error:
        said = str(getattr(error, "explanation", None) or error)
        raise MissingError(
            f"The Docker engine does not answer as it should: {said[:300]}", "docker info; its log: journalctl -u docker"
        ) from None


def _container(inspect: dict[str, Any]) -> Container:
    state = inspect["State"]
    health = state.get("Health") or {}
    # Docker keeps the last run's entries over a restart: an old error, or an old success, would be taken for news.
    log = [entry for entry in health.get("Log") or [] if _is_of_this_run(entry, state)]
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
        config_hash=inspect["Config"]["Labels"].get(HASH_LABEL, ""),
        compose_files=_compose_files(inspect["Config"]["Labels"]),
        probe=_json_line(text),
        probe_text=text,
        ports=_ports(inspect["HostConfig"].get("PortBindings") or {}),
        environment=dict(entry.partition("=")[::2] for entry in inspect["Config"].get("Env") or []),
    )


def _compose_files(labels: dict[str, str]) -> tuple[str, ...]:
    folder, files = labels.get(FOLDER_LABEL, ""), labels.get(FILES_LABEL, "")
    # The folder goes first: a comma in its name is none between two files.
    parts = files.replace(f"{folder}/", "").split(",") if folder and files else []
    return tuple(os.path.relpath(os.path.join(folder, part), folder) for part in parts)


def _ports(bindings: dict[str, list[dict[str, str]] | None]) -> dict[str, int]:
    """Of each port the first host port; one that Docker was to choose is left out."""
    return {port: int(hosts[0]["HostPort"]) for port, hosts in bindings.items() if hosts and hosts[0]["HostPort"]}


def _is_of_this_run(entry: dict[str, Any], state: dict[str, Any]) -> bool:
    started, probed = _time(state.get("StartedAt", "")), _time(entry.get("Start", ""))
    return started is None or probed is None or probed >= started


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
    """Docker writes the year 1 for never; health entries are in the host's time zone, the others in UTC."""
    return None if not text or text.startswith("0001-") else datetime.fromisoformat(text).astimezone(UTC)


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
