"""That Funnel, which shows a name to the whole internet, is nowhere: the five places where it would have to stand."""

from __future__ import annotations

import json
import re
from pathlib import Path

from qmdctl.tailnet import serve_config
from qmdctl.tailnet.sidecar import Sidecar

POLICY = "tailscale/policy.hujson"
HEADER = {"Tailscale-Funnel-Request": "?1"}  # what Tailscale adds to such a request (ipn/ipnlocal/serve.go)


def in_file(path: Path) -> list[tuple[str, str]]:
    """(what, fix) for AllowFunnel in a serve config on disk. A file that cannot be read has none: other links say so."""
    try:
        found = serve_config.funnel(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return []
    mend = f"take AllowFunnel out of {path}, even where it is false"
    return [(f"{path.name} of tailscale/{path.parent.name} has {found[0]}", mend)] if found else []


def in_force(sidecar: Sidecar, container_name: str) -> list[tuple[str, str]]:
    """In the serve config that Tailscale works by, a command that runs in the foreground included."""
    found = serve_config.funnel(sidecar.serve)
    mend = f"docker exec {container_name} tailscale funnel reset, then qmdctl restart {sidecar.service}"
    return [(f"the serve config in force has {found[0]}", mend)] if found else []


def permitted(sidecar: Sidecar) -> list[tuple[str, str]]:
    """By the tailnet's policy, as this node was told it. The policy of a new tailnet gives it to every person's devices."""
    mend = f"give the machine a tag in {sidecar.console('machines')} (Edit ACL tags), or take funnel out of nodeAttrs of the policy"
    return [("the tailnet's policy permits this node Funnel", mend)] if "funnel" in sidecar.capabilities else []


def in_policy_file(folder: Path) -> list[tuple[str, str]]:
    """A look at the project's own snippet; the tailnet's true policy cannot be read from here."""
    try:
        text = (folder / POLICY).read_text(encoding="utf-8")
    except OSError:
        return []
    mend = "take it out there, and out of the tailnet's own policy"
    return [(f"{POLICY} speaks of funnel", mend)] if speaks_of_funnel(text) else []


def speaks_of_funnel(policy: str) -> bool:
    """Whether "funnel" stands in HuJSON outside of its comments."""
    bare = re.sub(r'("(?:\\.|[^"\\])*")|//[^\n]*|/\*.*?\*/', lambda match: match[1] or "", policy, flags=re.DOTALL)
    return '"funnel"' in bare.lower()


def answered(port: int, timeout_seconds: float) -> int | None:
    """With which status the service at 127.0.0.1:`port` meets a request from Funnel; None where it does not answer."""
    import httpx

    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", headers=HEADER, timeout=timeout_seconds, trust_env=False).status_code
    except httpx.HTTPError:
        return None
