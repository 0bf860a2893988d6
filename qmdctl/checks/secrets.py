"""The key files that .env names: there, readable by the containers' user, and not empty where that locks everybody out."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

from qmdctl.checks.context import Context
from qmdctl.checks.finding import Finding

KEYS = ("HF_TOKEN_FILE", "API_KEYS_FILE", "GENERATION_API_KEY_FILE", "CA_FILE")


def check(context: Context) -> Iterator[Finding]:
    settings, found = context.settings, 0
    for key in KEYS:
        if not settings[key]:
            continue
        found += 1
        path = settings.project.folder / Path(settings[key]).expanduser()
        if not path.is_file():
            fix = f"install -m 600 /dev/null {path}, then write the key into it; or empty {key} in .env"
            yield Finding("secrets", "failure", f"{key}={settings[key]} is not a file", "Compose cannot mount it", fix, True)
            continue
        about = path.stat()
        readable = about.st_mode & stat.S_IROTH or (about.st_mode & stat.S_IRUSR and str(about.st_uid) == settings["QMD_UID"])
        if not readable:
            why = f"it belongs to user {about.st_uid}, and the containers run as QMD_UID={settings['QMD_UID']}"
            yield Finding(
                "secrets", "failure", f"{key}: the containers cannot read {path.name}", why, f"set QMD_UID={about.st_uid} in .env", True
            )
        elif key == "API_KEYS_FILE" and not about.st_size:
            yield Finding(
                "secrets", "warning", f"{path.name} is empty", "with API_KEYS_FILE set and no key in it nobody gets in", "add a key"
            )
        if about.st_mode & 0o077 and key != "CA_FILE":
            yield Finding("secrets", "warning", f"{path.name} can be read by others on this machine", "", f"chmod 600 {path}")
    if not found:
        yield Finding("secrets", "ok", "no secret is configured, none is needed")
    else:
        yield Finding("secrets", "ok", f"{found} key file{'s' if found > 1 else ''}")
