"""A request from inside a sidecar to the service that its name leads to: the same way as Tailscale's proxy goes."""

from __future__ import annotations

from urllib.parse import urlsplit

from qmdctl.engine import Container, Engine
from qmdctl.probes import Broken

MARK = "--8<-- status"
# busybox's wget is what Tailscale's image has: it says an HTTP error on stderr and ends with 1. Not each build of it knows -T.
SCRIPT = f'timeout 5 wget -Y off -q -O - "$0" 2>&1; ended=$?; echo; echo "{MARK} $ended"'


def reach(engine: Engine, container: Container, target: str) -> str:
    """What /health of `target` ("http://embed:8001") says, asked from inside the running sidecar. Broken where it is not reached."""
    parts = urlsplit(target)
    if parts.scheme not in ("http", "https"):
        return f"{target} (not tried: no address that wget takes)"
    said = engine.execute(container, ["sh", "-c", SCRIPT, f"{target.rstrip('/')}/health"])
    return judge(target, said, container.service)


def judge(target: str, said: str, sidecar: str) -> str:
    """`said`: what SCRIPT printed."""
    host, (text, found, status) = urlsplit(target).hostname or target, said.rpartition(MARK)
    line = " ".join(text.split())
    if not found:
        raise Broken(f"{sidecar} ended while it was asked", f"qmdctl status; qmdctl logs {sidecar}")
    if status.strip() == "0":
        return f"{target} answers 200"
    if "server returned error:" in line:
        answer = line.partition("server returned error:")[2].split()
        code = next((word for word in answer if word.isdecimal()), "?")
        if code in ("401", "403", "404"):
            return f"{target} answers {code}"
        raise Broken(f"{target}/health says {code}", f"qmdctl status; qmdctl logs {host}")
    if "bad address" in line:
        raise Broken(
            f"no such host: {sidecar} does not know the name {host}, for it does not run or shares no network with it",
            "qmdctl up; a compose.override.yaml must leave the networks of compose.yaml as they are",
        )
    if "refused" in line:
        raise Broken(f"{target} refuses the connection: {host} is not up, or listens at another port", f"qmdctl status; qmdctl logs {host}")
    if status.strip() in ("124", "143") or "timed out" in line:
        raise Broken(f"{target} does not answer in 5 s", f"qmdctl restart {host}")
    raise Broken(f"{target} is not reached: {line[:200]}", f"qmdctl status; qmdctl logs {host}")
