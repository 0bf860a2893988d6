"""Why a service failed: the known symptoms in its log, else what Docker and its healthcheck say."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qmdctl.engine import Container
from qmdctl.errors import QmdError
from qmdctl.startup.phases import Phase, exit_text
from qmdctl.symptoms import match

SHOWN_LINES = 12
ORDER_FAILED = re.compile(r"set-dns response: .*|getCertPEM: .*|cert.*(?:failed|error).*|acme.*(?:failed|error).*", re.IGNORECASE)


@dataclass(frozen=True)
class Cause:
    """One sentence on what is wrong and the command that mends it; `log`: the last lines, where no symptom is known."""

    sentence: str
    fix: str
    log: tuple[str, ...] = ()


class StartFailed(QmdError):
    """A service that cannot become ready."""

    def __init__(self, service: str, phase: str, cause: Cause) -> None:
        super().__init__(f"{service}: {cause.sentence}", cause.fix, "\n".join(f"  {line}" for line in cause.log))
        self.service, self.phase, self.cause = service, phase, cause

    def payload(self) -> dict[str, str | int]:
        return {**super().payload(), "service": self.service, "phase": self.phase, "log": "\n".join(self.cause.log)}


def cause_of(container: Container, phase: Phase, log: Sequence[str], facts: Mapping[str, str] | None = None, loop: bool = False) -> Cause:
    """`log`: its last lines, those of earlier runs included; `loop`: it is started again and again."""
    last = tuple(line[:300] for line in log if line.strip())[-SHOWN_LINES:]
    symptom = match(container.service, log, {**(facts or {}), "state": phase.name})
    if phase.name == "error" and phase.detail:  # the service's own sentence, which names the fix
        sentence, _, fix = phase.detail.partition("; fix: ")
        otherwise = f"mend that, then: qmdctl up; its log: qmdctl logs {container.service}"
        return Cause(sentence, fix or (symptom.fix if symptom else otherwise))
    if container.oom_killed or not symptom:
        sentence = {
            "unhealthy": f"Docker counts it as unhealthy: {phase.detail or 'its healthcheck fails'}",
            "paused": "its models were unloaded to free the device" if container.running else "the container is paused",
        }.get(phase.name, f"the container {'ends again and again' if loop else 'ended'} ({exit_text(container)})")
        fix = {
            "unhealthy": f"qmdctl restart {container.service}; its log: qmdctl logs {container.service}",
            "paused": f"qmdctl resume {container.service}" if container.running else f"docker unpause {container.name}",
        }.get(phase.name, f"see its whole log: qmdctl logs {container.service}")
        if container.oom_killed:
            fix = "choose smaller models in .env, or stop what else takes memory: qmdctl doctor shows the budget"
        return Cause(sentence, fix, last)
    return Cause(symptom.cause, symptom.fix, last[-3:])


def certificate_cause(container: Container, phase: Phase, log: Sequence[str], facts: Mapping[str, str]) -> Cause:
    """Why a sidecar waits for its certificate: the authority's limit, else what its log says of the order."""
    about = [line for line in log if ORDER_FAILED.search(line)]
    symptom = match(container.service, about, facts)
    if symptom:
        return Cause(symptom.cause, symptom.fix, tuple(line[:300] for line in about[-2:]))
    said = about[-1][:300] if about else phase.detail
    return Cause(
        f"it gets no certificate{': ' + said if said else ''}",
        f"qmdctl restart {container.service} tries again now, Tailscale itself every hour; keep the volume. Its log:"
        f" qmdctl logs {container.service}",
    )
