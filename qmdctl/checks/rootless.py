"""What rootless Docker may not do: raise the limit of locked memory, which it says only after everything was downloaded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from qmdctl.checks.context import Context, Unavailable
from qmdctl.checks.finding import Finding

NO_LIMIT = -1


def check(context: Context, proc: Path = Path("/proc")) -> Iterator[Finding]:
    if context.engine_error:
        raise Unavailable("no engine")
    if not context.rootless:
        yield Finding("rootless", "ok", "the engine is not rootless")
        return
    given, limit = context.settings["MEMLOCK_BYTES"] or str(NO_LIMIT), memlock_limit(context.engine.host, proc)
    unlimited = given == str(NO_LIMIT)
    why = "containers would not start: error setting rlimit type 8"
    if limit is None and unlimited:
        fix = "set MEMLOCK_BYTES in .env to what `ulimit -l` allows, in bytes (8388608 for 8192 kB)"
        yield Finding("rootless", "warning", "the engine is rootless and may not be able to lift the limit of locked memory", why, fix)
    elif limit not in (None, NO_LIMIT) and (unlimited or (given.isdecimal() and int(given) > limit)):
        what = f"the engine is rootless and may lock {limit} bytes; MEMLOCK_BYTES={given} asks for more"
        yield Finding("rootless", "failure", what, why, f"set MEMLOCK_BYTES={limit} in .env", True)
    else:
        yield Finding("rootless", "ok", "the engine is rootless, and its limit of locked memory is respected")


def memlock_limit(host: str, proc: Path = Path("/proc")) -> int | None:
    """The engine's hard limit in bytes, NO_LIMIT, or None where it cannot be read. Rootless dockerd keeps docker.pid beside its socket."""
    try:
        pid = (Path(urlsplit(host).path).parent / "docker.pid").read_text().strip()
        found = re.search(r"^Max locked memory\s+\S+\s+(\d+|unlimited)", (proc / pid / "limits").read_text(), re.MULTILINE)
    except OSError:
        return None
    return None if found is None else NO_LIMIT if found[1] == "unlimited" else int(found[1])
