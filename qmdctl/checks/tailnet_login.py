"""Troubles of a sidecar on its way into the tailnet. Each looks at the evidence and gives a finding, or None.

The numbers are those of the symptoms that others met (Tailscale's own threads are named where they are told).
"""

from __future__ import annotations

from qmdctl.checks.finding import Finding, Level
from qmdctl.checks.tailnet_evidence import Evidence
from qmdctl.startup.sidecar_phases import STOPPED, renamed_text
from qmdctl.tailnet.links import EXPIRED, LOG_IN_AGAIN

STATE = "/var/lib/tailscale"
IN_THE_TAILNET = ("Running", "NeedsMachineAuth", "Starting")


def told(evidence: Evidence, level: Level, what: str, why: str, fix: str) -> Finding:
    return Finding("tailnet_running", level, f"{evidence.service}: {what}", why, fix)


def said_in_its_log(evidence: Evidence) -> Finding | None:
    """4, 6, 8 and what else may keep it out: "invalid key: …", "requested tags … are invalid" and others (symptoms.yaml)."""
    if evidence.sidecar.state in IN_THE_TAILNET or (evidence.sidecar.auth_url and not evidence.sidecar.login_error):
        return None
    found = evidence.symptom()
    return told(evidence, "failure", found.cause.rstrip("."), "", found.fix) if found else None


def forgetful(evidence: Evidence) -> Finding | None:
    """4, 5. What makes a login anew at each start, which a key survives once only."""
    mounts = evidence.inspect(evidence.service, "Mounts")
    kept = mounts is None or any(mount.get("Destination") == STATE for mount in mounts)
    if evidence.environment("TS_STATE_DIR") != STATE or not kept:
        why = "each new container is a new machine: another name (-1), another certificate, another use of the key"
        return told(
            evidence, "failure", f"its login is not kept in a volume at {STATE}", why, "mount ts-… as compose.yaml does, then qmdctl up"
        )
    if evidence.environment("TS_AUTH_ONCE") != "true":
        why = "it logs in with the key at every start, and once the key has expired it is out"
        return told(evidence, "warning", "TS_AUTH_ONCE is not true", why, "set it as compose.yaml does, then qmdctl up")
    return None


def renamed(evidence: Evidence) -> Finding | None:
    """5. The tailnet has another machine of that name (tailscale/tailscale#11527)."""
    if not evidence.sidecar.renamed:
        return None
    what, fix = renamed_text(evidence.sidecar)
    return told(evidence, "failure", what, "clients that know the name that was asked for do not come here", fix)


def tun(evidence: Evidence) -> Finding | None:
    """8. It is told to make a network device, for which it has no rights (tailscale/tailscale#14256, #14277)."""
    kernel = evidence.environment("TS_USERSPACE").lower() in ("false", "0", "f")
    if not kernel or evidence.sidecar.running or evidence.symptom("tun_not_permitted"):
        return None
    why = "serving needs no network device; with TS_USERSPACE=false it wants /dev/net/tun and NET_ADMIN"
    return told(evidence, "failure", "TS_USERSPACE is false", why, "take TS_USERSPACE out of compose.override.yaml, then qmdctl up")


def approval(evidence: Evidence) -> Finding | None:
    """12. The tailnet approves devices."""
    if evidence.sidecar.state != "NeedsMachineAuth":
        return None
    fix = f"approve it in {evidence.sidecar.console('machines')}; a pre-approved key spares that"
    return told(evidence, "failure", "the machine waits for approval by the tailnet's owner", "until then nobody reaches it", fix)


def login(evidence: Evidence) -> Finding | None:
    """Not of the fifteen: nobody has logged it in, or its login is over."""
    sidecar = evidence.sidecar
    if sidecar.state == "NeedsLogin" and sidecar.auth_url:
        what = EXPIRED if sidecar.expired else "it waits for somebody to log it in"
        fix = f"open {sidecar.auth_url} as the tailnet's owner; or put a key into the file of TS_AUTHKEY_FILE, then qmdctl up"
        return told(evidence, "failure", what, "", fix)
    if sidecar.expired:
        return told(evidence, "failure", EXPIRED, "", LOG_IN_AGAIN)
    if sidecar.state == "Stopped":
        what, _, fix = STOPPED.format(container=evidence.container.name).partition("; fix: ")
        return told(evidence, "failure", what, "", fix)
    if evidence.container.running and not sidecar.state:
        return told(evidence, "failure", "tailscaled does not answer inside it", "", f"qmdctl restart {evidence.service}")
    return None


def cut_off(evidence: Evidence) -> Finding | None:
    """Not of the fifteen: the way to the login server is lost."""
    sidecar = evidence.sidecar
    if not sidecar.running or sidecar.online:
        return None
    why = "those who know it reach it still; what changes in the tailnet does not come here"
    fix = f"look at this machine's way out to the internet, then qmdctl restart {evidence.service}"
    return told(evidence, "warning", "its connection to the login server is lost", why, fix)


LOGIN_TROUBLES = (said_in_its_log, forgetful, renamed, tun, approval, login, cut_off)
