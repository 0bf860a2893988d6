"""The engine that `docker context` names: there, permitted, and new enough."""

from __future__ import annotations

from collections.abc import Iterator

from qmdctl.checks.context import Context
from qmdctl.checks.finding import Finding

OLDEST = 25  # start_interval of a healthcheck (Docker Engine 25.0's release notes)


def check(context: Context) -> Iterator[Finding]:
    error = context.engine_error
    if error:
        yield Finding("engine", "failure", error.message, "nothing can be started without it", error.fix)
        return
    version = str(context.info.get("ServerVersion", ""))
    major = version.split(".")[0]
    if major.isdecimal() and int(major) < OLDEST:
        why = "older ones do not know the healthchecks' start_interval"
        yield Finding("engine", "failure", f"Docker {version} is older than {OLDEST}", why, "update Docker: docs.docker.com/engine/install")
    elif context.remote:
        why = "./vllm and the secret files are mounted from the disk of the machine that the engine runs on, and it has none of them"
        fix = "clone the project there and run qmdctl there; for an engine here: docker context use default"
        yield Finding("engine", "failure", f"the engine at {context.engine.host} runs on another machine", why, fix)
    else:
        yield Finding("engine", "ok", f"Docker {version} at {context.engine.host}")
