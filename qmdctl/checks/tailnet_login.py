"""Troubles of a sidecar on its way into the tailnet. Each looks at the evidence and gives a finding, or None.

The numbers are those of the symptoms that others met (Tailscale's own threads are named where they are told).
"""

from __future__ import annotations

from qmdctl.checks.finding import Finding, Level
from qmdctl.checks.tailnet_evidence import Evidence
from qmdctl.startup.sidecar_phases import EXPIRED, STOPPED, renamed_text

KEYS_PAGE = "login.tailscale.com/admin/settings/keys"
STATE = "/var/lib/tailscale"
IN_THE_TAILNET = ("Running", "NeedsMachineAuth", "Starting")


def told(evidence: Evidence, level: Level, what: str, why: str, fix: str) -> Finding:
    return Finding("tailnet_running", level, f"{evidence.service}: {what}", why, fix)


def key_refused(evidence: Evidence) -> Finding | None:
    """4. "invalid key: API key … not valid", "… does not exist" (tailscale/tailscale#9715, #17047, #17912)."""
    if evidence.sidecar.state in IN_THE_TAILNET:
        return None
    if not evidence.lines(r"invalid key: |key cannot be used for node auth"):
        return None
    why = "it is used up, expired, revoked or of another tailnet; a one-off key lets one node in, and there are two"
    fix = f"make a reusable key with a tag at {KEYS_PAGE}, write it into the file of TS_AUTHKEY_FILE, then qmdctl up"
    return told(evidence, "failure", "Tailscale refuses the auth key", why, fix)


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


def tags_refused(evidence: Evidence) -> Finding | None:
    """6. (tailscale/tailscale#13829, #15456, tailscale/tsidp#159)."""
    if evidence.sidecar.state in IN_THE_TAILNET:
        return None
    if evidence.lines("oauth authkeys require --advertise-tags"):
        fix = "set TS_TAGS in .env to a tag of that client, such as tag:qmd-server, then qmdctl up"
        return told(evidence, "failure", "the key is an OAuth client secret, and TS_TAGS is empty", "those need a tag", fix)
    refused = evidence.lines(r"requested tags \[([^\]]*)\] are invalid or not permitted")
    if not refused:
        return None
    why = "the policy's tagOwners has to name them, and the key or the OAuth client has to have exactly them"
    fix = "merge tailscale/policy.hujson into the policy (login.tailscale.com/admin/acls), or correct TS_TAGS in .env; then qmdctl up"
    return told(evidence, "failure", f"the tailnet does not permit it the tags {refused[0][1]}", why, fix)


def tun(evidence: Evidence) -> Finding | None:
    """8. (tailscale/tailscale#14256, #14277)."""
    kernel = evidence.environment("TS_USERSPACE").lower() in ("false", "0", "f")
    said = evidence.lines(r"/dev/net/tun\b.*(?:not permitted|not exist|denied)|unable to create tuntap device|tstun\.New\(")
    if not (kernel or said) or evidence.sidecar.running:
        return None
    why = "serving needs no network device: TS_USERSPACE=true does without (otherwise it wants /dev/net/tun and NET_ADMIN)"
    fix = "take TS_USERSPACE out of compose.override.yaml, then qmdctl up"
    return told(evidence, "failure", "it may not make a network device", why, fix)


def approval(evidence: Evidence) -> Finding | None:
    """12. The tailnet approves devices."""
    if evidence.sidecar.state != "NeedsMachineAuth":
        return None
    fix = "approve it: login.tailscale.com/admin/machines; a pre-approved key spares that"
    return told(evidence, "failure", "the machine waits for approval by the tailnet's owner", "until then nobody reaches it", fix)


def login(evidence: Evidence) -> Finding | None:
    """Not of the fifteen: nobody has logged it in, or its login is over."""
    sidecar = evidence.sidecar
    if sidecar.expired or sidecar.state == "Stopped":
        what, _, fix = (EXPIRED if sidecar.expired else STOPPED.format(container=evidence.container.name)).partition("; fix: ")
        return told(evidence, "failure", what, "", fix)
    if sidecar.state == "NeedsLogin" and sidecar.auth_url:
        fix = f"open {sidecar.auth_url} as the tailnet's owner; or put a key into the file of TS_AUTHKEY_FILE, then qmdctl up"
        return told(evidence, "failure", "it waits for somebody to log it in", "", fix)
    if evidence.container.running and not sidecar.state:
        return told(evidence, "failure", "tailscaled does not answer inside it", "", f"qmdctl restart {evidence.service}")
    return None


def login_server(evidence: Evidence) -> Finding | None:
    """Not of the fifteen: no way to the login server, or the way was lost."""
    sidecar = evidence.sidecar
    if sidecar.running and sidecar.online:
        return None
    failed = evidence.lines(r'fetch control key: Get "(https?://[^/"]+)[^"]*": (.*)')
    if failed and not sidecar.running:
        why = failed[0][2][:200]
        fix = "the machine needs a way there by https (HTTPS_PROXY in .env where there is a proxy); TS_LOGIN_SERVER is the address"
        return told(evidence, "failure", f"it does not reach the login server {failed[0][1]}", why, fix)
    if sidecar.running:
        why = "those who know it reach it still; what changes in the tailnet does not come here"
        fix = f"look at this machine's way out to the internet, then qmdctl restart {evidence.service}"
        return told(evidence, "warning", "its connection to the login server is lost", why, fix)
    return None


LOGIN_TROUBLES = (key_refused, forgetful, renamed, tags_refused, tun, approval, login, login_server)
