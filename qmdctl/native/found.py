"""What of the seed's native setup is on this machine; reads only."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from qmdctl.checks.ports import free, holder
from qmdctl.engine import Engine
from qmdctl.native.containers import NAMES, NativeContainer, find_containers, inspected, ours, parse
from qmdctl.native.tailscale import Serving, find_serving
from qmdctl.native.units import Unit, find_units, home_of, left_files
from qmdctl.native.vllm_options import Serving as Generation
from qmdctl.native.vllm_options import translate
from qmdctl.native.weights import Cache, cache_folder, find_caches
from qmdctl.process import Completed, run

Run = Callable[..., Completed]
PORTS = {"embed": 8001, "vllm": 8000}  # the seed's
DEFAULTS = {"EMBED_MODEL": "Qwen/Qwen3-Embedding-4B", "RERANK_MODEL": "Qwen/Qwen3-Reranker-4B"}  # of the seed's embed_rerank.py
PROGRAM = "embed_rerank.py"
DOCKER_RUN_CACHE = re.compile(r"^(/[^:]+):/root/\.cache/huggingface(?::\w+)?$")


@dataclass(frozen=True)
class Found:
    """`health`: what the embed service that runs says of itself, {} where none answers. `stack`: names of our own containers."""

    units: list[Unit]
    systemd_problem: str
    containers: list[NativeContainer]
    stack: list[str]
    serving: Serving
    caches: list[Cache]
    health: dict[str, Any] = field(default_factory=dict)
    left_files: list[Path] = field(default_factory=list)
    former: list[NativeContainer] = field(default_factory=list)  # under their old names; a migration renamed them

    @property
    def anything(self) -> bool:
        """Whether there is something of the seed's. Weights alone, and a port of the node that leads to 8001, are anybody's."""
        return bool(self.units or self.containers or self.former or self.serving.services)

    @property
    def active_units(self) -> list[Unit]:
        return [unit for unit in self.units if unit.takes_part]

    @property
    def advertised(self) -> list[str]:
        return [name for name in self.serving.services if name in self.serving.advertised]

    def unit(self, name: str) -> Unit | None:
        """The one that runs, where both managers have one of this name."""
        named = [unit for unit in self.units if unit.name == name]
        return next((unit for unit in named if unit.takes_part), named[0] if named else None)

    def container(self, name: str) -> NativeContainer | None:
        return next((one for one in (*self.containers, *self.former) if one.name == name), None)

    @cached_property
    def generation(self) -> Generation:
        """How vLLM is served: by the container's command line, else by the unit's."""
        container, unit = self.container("qmd-vllm"), self.unit("qmd-vllm")
        found = translate(container.command) if container else Generation()
        return found if found.found or unit is None else translate(unit.command)

    @property
    def unit_runs_container(self) -> bool:
        """Whether systemd starts and removes the container qmd-vllm itself, as the seed's later unit does."""
        unit = self.unit("qmd-vllm")
        return bool(unit and unit.active and any(word.rsplit("/", 1)[-1] in ("docker", "podman") for word in unit.command[:1]))

    def model(self, key: str) -> tuple[str, str]:
        """EMBED_MODEL or RERANK_MODEL as it is served, and who says so. Empty where there is no native embed service."""
        said = (self.health.get("models") or {}).get(key.partition("_")[0].lower())
        if isinstance(said, str) and said:
            return said, "/health of the service that runs"
        unit, container = self.unit("qmd-embed"), self.container("qmd-embed")
        for name, environment in (
            ("unit qmd-embed", unit and unit.environment),
            ("container qmd-embed", container and container.environment),
        ):
            if environment and environment.get(key):
                return environment[key], name
        if unit and (default := program_default(Path(unit.working_directory) / PROGRAM, key)):
            return default, f"default in {unit.working_directory}/{PROGRAM}"
        return (DEFAULTS[key], "the seed's default") if unit or container else ("", "")

    def port(self, service: str) -> int:
        return self.port_from(service)[0]

    def port_from(self, service: str) -> tuple[int, str]:
        """The port, and who says so."""
        return port_of(service, self.units, [*self.containers, *self.former])

    def strangers(self) -> dict[int, str]:
        """Ports that neither unit nor container nor stack of ours holds, and who does."""
        held = {}
        for service in PORTS:
            name, port = f"qmd-{service}", self.port(service)
            known = any(unit.name == name and unit.active for unit in self.units)
            known = known or name in self.stack or any(one.name == name and one.running for one in self.containers)
            if not known and not free(port):
                held[port] = holder(port) or "a program of another user"
        return held

    def payload(self) -> dict[str, Any]:
        return {
            "units": [unit.payload() for unit in self.units],
            "systemd": self.systemd_problem or None,
            "containers": [one.payload() for one in self.containers],
            "own_containers": self.stack,
            "tailscale": self.serving.payload(),
            "weights": [cache.payload() for cache in self.caches],
        }

    def lines(self) -> Iterator[str]:
        """For people."""
        for unit in self.units:
            whose = f" of {unit.manager.user}" if unit.manager.user else ""
            yield f"unit{whose} {unit.file}: {unit.state} ({unit.path})"
        if self.systemd_problem:
            yield f"no unit: {self.systemd_problem}"
        for path in self.left_files if self.systemd_problem else ():
            yield f"unit file {path}: nothing starts it here"
        for one in self.containers:
            published = ", ".join(f"{address}:{port}" for address, port in one.ports.values()) or "no port"
            yield f"container {one.name}: {one.state}, restart {one.restart}, {one.image}, {published}"
        for name, entries in self.serving.services.items():
            yield f"Tailscale Service {name}: {'advertised' if name in self.serving.advertised else 'drained'}; " + "; ".join(
                entry.sentence() for entry in entries
            )
        yield from (f"tailscale serve: {entry.sentence()}" for entry in self.serving.node)
        if self.serving.problem:
            yield self.serving.problem
        yield from (f"weights in {cache.sentence()}" for cache in self.caches)


def find(engine: Engine, project: str, folder: Path, renamed: Mapping[str, str] | None = None, runner: Run = run) -> Found:
    """Look at everything. `renamed`: {id: old name} of containers that a migration has renamed. MissingError where no engine answers."""
    containers = find_containers(engine, project, folder)
    known = {one.id for one in containers}
    former = [
        replace(parse(one), name=name) for id_, name in (renamed or {}).items() if id_ not in known and (one := inspected(engine, id_))
    ]
    stack = [name for name in NAMES if (one := inspected(engine, name)) and ours(one, project, folder)]
    units, problem = find_units(runner)
    ports = {service: port_of(service, units, [*containers, *former])[0] for service in PORTS}
    health = ask(ports["embed"]) if "qmd-embed" not in stack else {}
    found = Found(units, problem, containers, stack, find_serving(ports, runner), [], health, left_files(), former)
    models = [found.model("EMBED_MODEL")[0], found.model("RERANK_MODEL")[0], found.generation.model]
    return replace(found, caches=find_caches(cache_candidates(units, [*containers, *former]), filter(None, models)))


def port_of(service: str, units: list[Unit], containers: list[NativeContainer]) -> tuple[int, str]:
    """The port on the host and who says so: the container, else the unit, else the seed."""
    name = f"qmd-{service}"
    for container in containers:
        if container.name == name:
            inside = translate(container.command).port if service == "vllm" else PORTS[service]
            if container.host_network:
                return inside, f"container {name}"
            if f"{inside}/tcp" in container.ports:
                return container.ports[f"{inside}/tcp"][1], f"container {name}"
    for unit in sorted(units, key=lambda unit: not unit.takes_part):
        if unit.name == name:
            published = re.match(r"^(?:[\d.]+:)?(\d+):\d+$", unit.option("-p") or unit.option("--publish"))
            text = published.group(1) if published else unit.option("--port")
            if text.isdecimal():
                return int(text), f"unit {name}"
    return PORTS[service], "the seed's default"


def ask(port: int) -> dict[str, Any]:
    """/health of a service that listens there; {} where none answers within 3 s."""
    import httpx

    try:
        data = httpx.get(f"http://127.0.0.1:{port}/health", timeout=3, trust_env=False).json()
    except (httpx.HTTPError, ValueError):
        return {}
    return data if isinstance(data, dict) and isinstance(data.get("models"), dict) else {}


def program_default(program: Path, key: str) -> str:
    """The default that the seed's own program has for `key`: it changed between its versions. Empty where it cannot be read."""
    try:
        text = program.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    match = re.search(rf"""environ\.get\(\s*["']{key}["']\s*,\s*["']([^"']+)["']""", text)
    return match.group(1) if match else ""


def cache_candidates(units: list[Unit], containers: list[NativeContainer]) -> Iterator[tuple[Path, str]]:
    """Folders that may be the services' Hugging Face cache, with whose."""
    for unit in units:
        mounts = (DOCKER_RUN_CACHE.match(word) for word in unit.command)
        yield from ((Path(match.group(1)), f"mounted by unit {unit.name}") for match in mounts if match)
        folder = cache_folder(unit.environment, home_of(unit.user)) if "docker" not in unit.command[:1] else None
        if folder:
            yield folder, f"of unit {unit.name}"
    for container in containers:
        if container.cache():
            yield Path(container.cache()), f"mounted by container {container.name}"
    caller = os.environ.get("SUDO_USER")
    home = home_of(caller) if caller and os.geteuid() == 0 else None
    environment = {key: os.environ[key] for key in ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME") if key in os.environ}
    own = cache_folder({} if home else environment, home or Path.home())
    if own:
        yield own, "yours"
