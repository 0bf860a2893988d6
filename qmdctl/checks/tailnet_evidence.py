"""What is known of a sidecar and the service behind it, gathered once: the ground for tailnet_running."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from qmdctl.checks.context import Context
from qmdctl.engine import Container, Engine
from qmdctl.probes import Broken
from qmdctl.settings import Settings
from qmdctl.symptoms import Symptom, match
from qmdctl.tailnet import SIDECARS, serve_config
from qmdctl.tailnet.reach import reach
from qmdctl.tailnet.sidecar import Sidecar, read_sidecar

LOG_LINES = 1000  # tailscaled says much at its start
STAMP = re.compile(r"(\d{4}/\d\d/\d\d \d\d:\d\d:\d\d)")


@dataclass(frozen=True)
class Evidence:
    """`log`: of the sidecar's present run, of all runs where it does not run. `inspected`: `docker inspect` by compose service.

    `peers`: the other nodes as Tailscale describes them. `unreached`: why the service behind is not reached from inside, or None.
    """

    settings: Settings
    container: Container
    sidecar: Sidecar
    log: tuple[str, ...] = ()
    backends: tuple[Container, ...] = ()
    inspected: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    peers: tuple[Mapping[str, Any], ...] = ()
    unreached: Broken | None = None
    other: str = ""  # another sidecar that is in the tailnet

    @property
    def service(self) -> str:
        return self.container.service

    def lines(self, pattern: str, since: datetime | None = None) -> list[re.Match[str]]:
        """The log's lines that have `pattern`, the newest first; with `since` those that are not older by their own stamp."""
        found = (re.search(pattern, line, re.IGNORECASE) for line in reversed(self.log))
        return [match for match in found if match and not (since and _older(match.string, since))]

    def symptom(self, *names: str) -> Symptom | None:
        """The newest line of the log, or Tailscale's own word on the last login, that one of these symptoms knows; none named: any."""
        facts = {**self.settings, "other_sidecar": self.other}
        for line in reversed([*self.log, self.sidecar.login_error]):
            found = match(self.service, [line], facts)
            if found and (not names or found.name in names):
                return found
        return None

    def environment(self, name: str) -> str:
        return self.container.environment.get(name, "")

    def inspect(self, service: str, *path: str) -> Any:
        """A value of `docker inspect`, None where it is not there."""
        node: Any = self.inspected.get(service)
        for key in path:
            node = node.get(key) if isinstance(node, Mapping) else None
        return node


def _older(line: str, moment: datetime) -> bool:
    """The sidecar's clock is UTC, as its image has no other."""
    stamp = STAMP.search(line)
    return stamp is not None and datetime.strptime(stamp[1], "%Y/%m/%d %H:%M:%S").replace(tzinfo=UTC) < moment.replace(microsecond=0)


def gather(context: Context, container: Container) -> Evidence:
    engine, running = context.engine, container.running
    sidecar = read_sidecar(engine, container) if running else Sidecar(container.service)
    log = engine.logs(container, tail=LOG_LINES, since=container.started_at if running else None)
    targets = serve_config.targets(sidecar.serve)
    hosts = {urlsplit(target).hostname for target in targets} or {SIDECARS[container.service]}
    backends = tuple(one for name, one in context.containers.items() if name in hosts)
    inspected = {one.service: _inspect(engine, one) for one in (container, *backends)}
    peers = _peers(engine.execute(container, ["timeout", "3", "tailscale", "status", "--json"])) if sidecar.running else ()
    unreached = _unreached(engine, container, targets) if running and targets else None
    return Evidence(context.settings, container, sidecar, tuple(log), backends, inspected, peers, unreached)


def _inspect(engine: Engine, container: Container) -> Mapping[str, Any]:
    from docker.errors import NotFound

    try:
        found: Mapping[str, Any] = engine.client.api.inspect_container(container.id)
    except NotFound:  # removed in between
        return {}
    return found


def _peers(text: str) -> tuple[Mapping[str, Any], ...]:
    try:
        status = json.loads(text)
    except ValueError:
        return ()
    return tuple((status.get("Peer") or {}).values()) if isinstance(status, dict) else ()


def _unreached(engine: Engine, container: Container, targets: list[str]) -> Broken | None:
    for target in targets:
        try:
            reach(engine, container, target)
        except Broken as why:
            return why
    return None
