"""Watching a start until every service is ready, or one cannot become so."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol

from qmdctl.control import UNLOADED, as_of_now
from qmdctl.engine import Container, Engine
from qmdctl.errors import MissingError, WaitTimeoutError
from qmdctl.startup.causes import Cause, StartFailed, cause_of, certificate_cause
from qmdctl.startup.estimate import Progress
from qmdctl.startup.phases import Phase, phase_of
from qmdctl.startup.sidecar_phases import sidecar_phase
from qmdctl.tailnet import SIDECARS
from qmdctl.tailnet.sidecar import read_sidecar

POLL_SECONDS = 0.5
LOG_LINES = 200
LOOP_RESTARTS = 2  # one is a container that came back; the second one says that it will end again
MISSING_LOOKS = 20
ENGINE_AWAY_SECONDS = 60.0  # unpacking an image of 20 GB can keep an engine from answering, and so does its restart
FAILED = frozenset({"error", "unhealthy", "exited", "paused"})
RATE_WINDOW_SECONDS = 30.0
LOGIN_GRACE_SECONDS = 60.0  # a sidecar that nobody logs in begins anew after its TS_BOOT_TIMEOUT; that is no fault
CERTIFICATE_SECONDS = 120.0  # it takes seconds, and Tailscale tries a failed order again after an hour only


class Source(Protocol):
    """What the watch reads: qmdctl.engine.Engine, or a test's own."""

    def containers(self, project: str) -> dict[str, Container]: ...

    def log(self, container: Container, whole: bool) -> list[str]:
        """Its last lines: of this run, or of all runs."""

    def inside(self, container: Container) -> Phase | None:
        """What a running sidecar says of itself; None for any other container."""


class EngineSource:
    """The containers and logs of a real engine; `folder` is the project's."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self._engine, self._folder = engine, folder

    def containers(self, project: str) -> dict[str, Container]:
        found = self._engine.containers(project)
        embed = found.get("embed")
        if embed is not None and embed.probe.get("status") in UNLOADED:  # it may be an old line: it has been resumed, or woken
            found["embed"] = as_of_now(self._engine, embed)
        return found

    def log(self, container: Container, whole: bool) -> list[str]:
        return self._engine.logs(container, tail=LOG_LINES, since=None if whole else container.started_at)

    def inside(self, container: Container) -> Phase | None:
        if container.service not in SIDECARS or not container.running:
            return None
        return sidecar_phase(read_sidecar(self._engine, container), self._folder, container.name)


class Display(Protocol):
    def show(self, progress: Mapping[str, Progress], seconds: float) -> None: ...

    def ask_login(self, service: str, link: str) -> None:
        """A sidecar waits for somebody to open `link`."""


@dataclass
class Service:
    """One service during the watch. `seconds`: what each phase has taken so far."""

    name: str
    phase: Phase = field(default_factory=lambda: Phase("missing"))
    since: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    restarts_at_start: int | None = None
    restarts: int = 0
    looks_without: int = 0  # a container
    fresh: bool = False  # its start was seen from the beginning
    bytes_seen: list[tuple[float, int]] = field(default_factory=list)
    asked: str = ""  # the login link that was shown last
    asking_at: float = -LOGIN_GRACE_SECONDS

    def enter(self, phase: Phase, now: float, before: float) -> None:
        """Count the time since the look `before` for the phase it was in, and note the new one."""
        if self.phase.name != "missing":
            self.seconds[self.phase.name] = self.seconds.get(self.phase.name, 0.0) + now - before
        if phase.name != self.phase.name:
            self.since = now
            self.bytes_seen.clear()
        self.phase = phase
        if phase.name == "downloading" and (not self.bytes_seen or self.bytes_seen[-1][1] != phase.done_bytes):
            self.bytes_seen.append((now, phase.done_bytes))
            while len(self.bytes_seen) > 2 and now - self.bytes_seen[0][0] > RATE_WINDOW_SECONDS:
                del self.bytes_seen[0]

    def progress(self, now: float) -> Progress:
        return Progress(self.phase, now - self.since, self._rate())

    def _rate(self) -> float:
        """Bytes per second over the last half minute; the healthcheck tells them every few seconds only."""
        if len(self.bytes_seen) < 2 or self.phase.stalled:
            return 0.0
        (start, first), (end, last) = self.bytes_seen[0], self.bytes_seen[-1]
        return max(0.0, (last - first) / (end - start)) if end > start else 0.0


@dataclass(frozen=True)
class Start:
    """A start that ended with every service ready: service → phase → seconds, and the whole in seconds.

    `fresh`: the services that started during it and ran through, so that their seconds are those of a whole start.
    """

    phases: dict[str, dict[str, float]]
    total_seconds: float
    restarted: dict[str, int]
    fresh: frozenset[str]


class Watch:
    """Looks every half second until all `services` of `project` are ready."""

    def __init__(
        self,
        source: Source,
        project: str,
        services: Sequence[str],
        display: Display,
        *,
        again: str = "qmdctl up",
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        facts: Mapping[str, str] | None = None,
        began: datetime | None = None,
    ) -> None:
        """`again`: the command that watches again. `began`: before anything was started; containers started since are fresh."""
        self.source, self.project, self.display = source, project, display
        self.services = {name: Service(name) for name in services}
        self.clock, self.sleep, self.facts, self.began, self.again = clock, sleep, facts or {}, began, again

    def run(self, timeout_seconds: float | None = None, spent_seconds: float = 0.0) -> Start:
        """Raises StartFailed as soon as a service cannot become ready, WaitTimeoutError after `timeout_seconds`, some spent before."""
        started = before = self.clock()
        for service in self.services.values():
            service.since = started
        seen = started
        while True:
            try:
                containers = self.source.containers(self.project)
            except MissingError:
                if self.clock() - seen >= ENGINE_AWAY_SECONDS:
                    raise
                self.sleep(POLL_SECONDS)
                continue
            now = seen = self.clock()
            for service in self.services.values():
                self._look(service, containers.get(service.name), now, before)
            self.display.show({name: service.progress(now) for name, service in self.services.items()}, now - started)
            for service in self.services.values():
                self._judge(service, containers.get(service.name), now)
            if all(service.phase.ready for service in self.services.values()):
                phases = {name: service.seconds for name, service in self.services.items()}
                restarted = {name: service.restarts for name, service in self.services.items() if service.restarts}
                fresh = frozenset(name for name, service in self.services.items() if service.fresh) - restarted.keys()
                return Start(phases, now - started, restarted, fresh)
            if timeout_seconds is not None and now - started + spent_seconds >= timeout_seconds:
                raise timed_out(self.services, timeout_seconds, self.again)
            before = now
            self.sleep(POLL_SECONDS)

    def _look(self, service: Service, container: Container | None, now: float, before: float) -> None:
        needs_log = container is not None and container.service == "vllm" and container.running and container.health == "starting"
        log = self.source.log(container, whole=False) if needs_log and container is not None else []
        inside = self.source.inside(container) if container is not None else None
        service.enter(phase_of(container, log, inside), now, before)
        if service.phase.name in ("login", "approval"):  # a person's turn
            service.asking_at = now
            service.restarts_at_start = container.restart_count if container is not None else None
            if service.phase.name == "login" and service.phase.detail != service.asked:
                service.asked = service.phase.detail
                self.display.ask_login(service.name, service.asked)
        if container is not None:
            if service.restarts_at_start is None:
                service.restarts_at_start = container.restart_count
                service.fresh = self.began is not None and container.started_at is not None and container.started_at >= self.began
            service.restarts = max(0, container.restart_count - service.restarts_at_start)

    def _judge(self, service: Service, container: Container | None, now: float) -> None:
        """StartFailed when it cannot become ready by itself."""
        if container is None:
            service.looks_without += 1
            if service.restarts_at_start is not None or service.looks_without >= MISSING_LOOKS:
                raise StartFailed(service.name, "missing", Cause("its container is gone", "qmdctl up"))
            return
        if now - service.asking_at < LOGIN_GRACE_SECONDS:
            return
        if service.phase.name == "certificate" and now - service.since >= CERTIFICATE_SECONDS:
            log = self.source.log(container, whole=False)
            raise StartFailed(service.name, "certificate", certificate_cause(container, service.phase, log, self.facts))
        loop = service.restarts >= LOOP_RESTARTS or (container.state == "restarting" and container.restart_count >= LOOP_RESTARTS)
        if loop or service.phase.name in FAILED:
            log = self.source.log(container, whole=True)
            facts = {**self.facts, "other_sidecar": joined({name: one.phase for name, one in self.services.items()}, service.name)}
            raise StartFailed(
                service.name, "restarting" if loop else service.phase.name, cause_of(container, service.phase, log, facts, loop)
            )


def joined(phases: Mapping[str, Phase], but: str) -> str:
    """Another sidecar than `but` that is on the tailnet; empty where there is none."""
    on_it = ("applying", "certificate", "ready")
    return next((name for name in SIDECARS if name != but and name in phases and phases[name].name in on_it), "")


def timed_out(services: Mapping[str, Service], timeout_seconds: float, again: str) -> WaitTimeoutError:
    """Names the phase of each service that is not ready, and the command that waits twice as long."""
    late = {name: service.phase.text for name, service in services.items() if not service.phase.ready}
    phases = "; ".join(f"{name} is {text}" if not text.startswith("asking") else f"{name}: {text}" for name, text in late.items())
    logs = ", ".join(f"qmdctl logs {name}" for name in late)
    return WaitTimeoutError(
        f"Not ready after {timeout_seconds:g} s: {phases}. It goes on by itself.",
        f"{again} --timeout {2 * timeout_seconds:g} (waits twice as long); what it does: {logs}",
    )
