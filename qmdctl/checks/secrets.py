"""The key files that .env names: there, readable by the containers' user, and not empty where that locks everybody out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from stat import S_ISREG

from qmdctl import api_keys
from qmdctl.checks.container_user import GROUP, OWNER, READ, class_of, fix, may, why_not
from qmdctl.checks.context import Context
from qmdctl.checks.finding import Finding, Level
from qmdctl.errors import ConfigurationError
from qmdctl.monitors import SECRET_KEYS

KEYS = ("HF_TOKEN_FILE", "API_KEYS_FILE", "GENERATION_API_KEY_FILE", *SECRET_KEYS)
CA = "CA_FILE"  # no container gets it: docker reads it, as the user who builds


def check(context: Context) -> Iterator[Finding]:
    settings, found = context.settings, 0
    for key in (*KEYS, CA):
        if settings[key]:
            found += 1
            yield from _file(context, key, settings.project.folder / Path(settings[key]).expanduser())
    if not found:
        yield Finding("secrets", "ok", "no secret is configured, none is needed")
    else:
        yield Finding("secrets", "ok", f"{found} key file{'s' if found > 1 else ''}")


def _file(context: Context, key: str, path: Path) -> Iterator[Finding]:
    try:
        about = path.stat()
    except PermissionError:
        level: Level = "failure" if key == CA else "warning"  # the engine, which mounts the others, may reach them
        yield Finding("secrets", level, f"{key}: {path} cannot be looked at by this user", "", f"sudo namei -l {path} shows why", True)
        return
    except OSError:
        about = None
    if about is None or not S_ISREG(about.st_mode):
        made = f"install -m 600 /dev/null {path}, then write the key into it"
        mend = f"{'qmdctl keys add NAME' if key == 'API_KEYS_FILE' and about is None else made}; or empty {key} in .env"
        yield Finding("secrets", "failure", f"{key}={context.settings[key]} is not a file", "Compose cannot mount it", mend, True)
        return
    if key == CA:
        if not os.access(path, os.R_OK):
            yield Finding(
                "secrets", "failure", f"{key}: {path} cannot be read by this user", "the build needs it", f"chmod +r {path}", True
            )
        return
    readable = may(context, about, READ)
    if not readable:
        what = f"{key}: the containers {'cannot' if readable is False else 'may not be able to'} read {path.name}"
        yield Finding(
            "secrets", "failure" if readable is False else "warning", what, why_not(context, about), fix(context, about, path), True
        )
    elif key == "API_KEYS_FILE" and os.access(path, os.R_OK):
        yield from _keys(path)
    taken_as = class_of(context, about)
    if about.st_mode & (0o007 if taken_as == GROUP else 0o077):
        closed = {OWNER: f"chmod 600 {path}", GROUP: f"chmod o= {path}"}
        what = f"{path.name} can be read by others on this machine"
        yield Finding("secrets", "warning", what, "", closed.get(taken_as) or f"{fix(context, about, path)}; then chmod 600 {path}")


def _keys(path: Path) -> Iterator[Finding]:
    try:
        keys = api_keys.read(path).keys
    except ConfigurationError as error:
        yield Finding("secrets", "failure", error.message, "", error.fix, True)
        return
    if not keys:
        yield Finding("secrets", "warning", f"{path.name} has no key", "with API_KEYS_FILE set nobody gets in then", "qmdctl keys add NAME")
