"""The stack at one moment: per service what it does, since when, where it answers, and what mends it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from qmdctl.control import as_of_now
from qmdctl.engine import Container, Engine
from qmdctl.settings import Settings
from qmdctl.startup.causes import cause_of, certificate_cause
from qmdctl.startup.phases import Phase, phase_of
from qmdctl.startup.sidecar_phases import renamed_text, sidecar_phase
from qmdctl.startup.watch import CERTIFICATE_SECONDS, FAILED, EngineSource, joined
from qmdctl.tailnet import SIDECARS
from qmdctl.tailnet.sidecar import read_sidecar
from qmdctl.terminal import human_seconds, table

MODEL_VARIABLES = ("EMBED_MODEL", "RERANK_MODEL", "QMD_MODEL")
PATHS = {"embed": "/v1/embeddings, /v1/rerank", "vllm": "/v1/completions, /v1/chat/completions"}
PATHS |= {sidecar: f"{PATHS[service]} on the tailnet" for sidecar, service in SIDECARS.items()}


@dataclass(frozen=True)
class ServiceStatus:
    """`cause` and `fix` are empty while nothing is wrong."""

    service: str
    phase: Phase
    container: Container | None
    cause: str = ""
    fix: str = ""
    name_url: str = ""  # of a sidecar: its address on the tailnet

    @property
    def ready(self) -> bool:
        return self.phase.ready

    @property
    def url(self) -> str:
        ports = list(self.container.ports.values()) if self.container and self.service not in SIDECARS else []
        return self.name_url or (f"http://127.0.0.1:{ports[0]}" if ports else "")

    @property
    def models(self) -> list[str]:
        """What the service says that it serves, else what its container was made for."""
        told = self.container.probe.get("models") if self.container else None
        if isinstance(told, dict) and told:
            return list(dict.fromkeys(str(name) for name in told.values()))
        found = [self.container.environment.get(name, "") for name in MODEL_VARIABLES] if self.container else []
        return list(dict.fromkeys(name for name in found if name))

    @property
    def seconds(self) -> float | None:
        """Since it started, or since it ended."""
        container = self.container
        when = container and (container.started_at if container.running else container.finished_at)
        return (datetime.now(UTC) - when).total_seconds() if when else None

    def payload(self) -> dict[str, Any]:
        container, phase = self.container, self.phase
        return {
            "service": self.service,
            "ready": self.ready,
            "phase": phase.name,
            "text": phase.text,
            **({"done_bytes": phase.done_bytes, "total_bytes": phase.total_bytes} if phase.name == "downloading" else {}),
            "state": container.state if container else None,
            "health": (container.health or None) if container else None,
            "since": container.started_at.isoformat() if container and container.started_at else None,
            "restarts": container.restart_count if container else 0,
            "image": container.image if container else None,
            "url": self.url or None,
            "models": self.models,
            "cause": self.cause or None,
            "fix": self.fix or None,
        }


def look(engine: Engine, services: Sequence[str], settings: Settings) -> list[ServiceStatus]:
    """All of `services`, and any other container of the project."""
    containers, source = engine.containers(settings.name), EngineSource(engine, settings.project.folder)
    containers = {name: as_of_now(engine, one) for name, one in containers.items()}
    names = [*services, *(name for name in containers if name not in services)]
    sidecars = {name: read_sidecar(engine, one) for name, one in containers.items() if one.running and name in SIDECARS and name in names}
    phases = {}
    for name in names:
        container = containers.get(name)
        wants_log = container is not None and container.health == "starting" and name == "vllm"
        log = source.log(container, whole=False) if container and wants_log else []
        inside = sidecar_phase(sidecars[name], settings.project.folder, containers[name].name) if name in sidecars else None
        phases[name] = phase_of(container, log, inside)
    found = []
    for name, phase in phases.items():
        container, sidecar = containers.get(name), sidecars.get(name)
        cause, fix = "", ""
        if container is None or container.state == "created":
            fix = "qmdctl up"
        elif phase.name == "exited" and container.exit_code in (0, 143) and not container.error:
            fix = f"qmdctl start {name}"
        elif phase.name in FAILED or phase.name == "restarting":
            facts = {**settings, "other_sidecar": joined(phases, name)}
            why = cause_of(container, phase, source.log(container, whole=True), facts, phase.name == "restarting")
            cause, fix = why.sentence, why.fix
        elif phase.name == "certificate" and _seconds_of(container) > CERTIFICATE_SECONDS:
            why = certificate_cause(container, phase, source.log(container, whole=False), settings)
            cause, fix = why.sentence, why.fix
        elif phase.name == "login":
            cause, fix = "nobody has logged it in yet", f"open {phase.detail}"
        elif sidecar is not None and sidecar.renamed:
            cause, fix = renamed_text(sidecar)
        found.append(ServiceStatus(name, phase, container, cause, fix, sidecar.url if sidecar else ""))
    return found


def _seconds_of(container: Container) -> float:
    """For which it has run."""
    return (datetime.now(UTC) - container.started_at).total_seconds() if container.started_at else 0.0


def as_table(stack: Sequence[ServiceStatus]) -> str:
    """For people; below it what is wrong and what mends it."""
    rows = []
    for one in stack:
        seconds = one.seconds
        restarts = str(one.container.restart_count) if one.container else ""
        state = one.phase.text if len(one.phase.text) < 60 else one.phase.name
        row = (one.service, state, human_seconds(seconds) if seconds is not None else "", restarts, one.url, ", ".join(one.models))
        rows.append((*row, one.container.image if one.container else ""))
    text = table(rows, ("SERVICE", "STATE", "SINCE", "RESTARTS", "URL", "MODELS", "IMAGE"))
    for one in stack:
        if one.fix:
            text += f"\n✗ {one.service}: {one.cause or one.phase.text}\n  → {one.fix}"
    return text


def addresses(stack: Sequence[ServiceStatus]) -> str:
    """What answers where, for the end of `up`."""
    rows = [(one.service, one.url, ", ".join(one.models), PATHS.get(one.service, "")) for one in stack if one.container]
    return table((" ", *row) for row in rows)
