"""What is wrong with sidecars that are there: each known trouble by its evidence, with its cause and what mends it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from qmdctl.checks.context import Context, Unavailable
from qmdctl.checks.finding import Finding
from qmdctl.checks.tailnet_evidence import Evidence, gather
from qmdctl.checks.tailnet_login import LOGIN_TROUBLES
from qmdctl.checks.tailnet_services import started
from qmdctl.checks.tailnet_traffic import TRAFFIC_TROUBLES
from qmdctl.startup.causes import cause_of
from qmdctl.startup.phases import phase_of


def check(context: Context) -> Iterator[Finding]:
    names = started(context)
    there = [context.containers[name] for name in names if name in context.containers]
    if not there:
        raise Unavailable("no sidecar has a container yet")
    seen = [gather(context, container) for container in there]
    for evidence in seen:
        other = next((one.service for one in seen if one is not evidence and one.sidecar.running), "")
        yield from judge(replace(evidence, other=other))


def judge(evidence: Evidence) -> Iterator[Finding]:
    """Every trouble of one sidecar, else that it is well."""
    found = [finding for trouble in (*LOGIN_TROUBLES, *TRAFFIC_TROUBLES) if (finding := trouble(evidence))]
    container = evidence.container
    if not container.running and not any(finding.level == "failure" for finding in found):
        why = cause_of(container, phase_of(container), evidence.log, evidence.settings, container.state == "restarting")
        found.append(Finding("tailnet_running", "failure", f"{container.service} does not run: {why.sentence}", "", why.fix))
    yield from found
    if not any(finding.level in ("failure", "warning") for finding in found):
        sidecar = evidence.sidecar
        state = sidecar.url if sidecar.running and sidecar.name else f"connecting (state {sidecar.state or 'unknown'})"
        yield Finding("tailnet_running", "ok", f"{container.service}: {state}")
