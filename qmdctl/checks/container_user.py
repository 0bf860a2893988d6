"""What the containers' user may do with a file of the host: a bind mount keeps the owner's number and the mode."""

from __future__ import annotations

import os
from pathlib import Path

from qmdctl.checks.context import Context

READ, WRITE_FOLDER = 0o4, 0o3  # the bits of one class in a mode; something is made in a folder by writing and searching
OWNER, GROUP, OTHERS = 6, 3, 0  # the classes, by the place of their bits


def class_of(context: Context, about: os.stat_result) -> int:
    """As which of the three the containers' user is taken."""
    user, group = context.settings["QMD_UID"], context.settings["QMD_GID"]
    if context.rootless:
        # There 0 is the user who runs the engine; other numbers are subordinate ids, which own none of that user's files.
        user = str(os.getuid()) if user == "0" else ""
        group = str(os.getgid()) if group == "0" else ""
    return OWNER if str(about.st_uid) == user else GROUP if str(about.st_gid) == group else OTHERS


def may(context: Context, about: os.stat_result, bits: int) -> bool | None:
    """None: it cannot be told, because the engine gives the numbers another meaning that is not known here."""
    if about.st_mode >> class_of(context, about) & bits == bits:
        return True
    unknown = context.desktop or context.remapped or (context.rootless and about.st_uid != os.getuid())
    return None if unknown else False


def why_not(context: Context, about: os.stat_result) -> str:
    user = context.settings["QMD_UID"]
    if context.rootless and user != "0":
        return f"under rootless Docker 0 is you, and QMD_UID={user} is a user who owns nothing here"
    return f"it belongs to user {about.st_uid} (mode {about.st_mode & 0o777:o}), and the containers run as QMD_UID={user}"


def fix(context: Context, about: os.stat_result, path: Path) -> str:
    """What lets the containers in. Root's files are given away: containers do not run as root for their sake."""
    user, group = context.settings["QMD_UID"], context.settings["QMD_GID"]
    if context.rootless and user != "0":
        return "set QMD_UID=0 and QMD_GID=0 in .env"
    if context.rootless:
        user, group = str(os.getuid()), str(os.getgid())
    if str(about.st_uid) == user:
        return f"chmod u+rw{'x' if path.is_dir() else ''} {path}"
    chown = f"sudo chown {'-R ' if path.is_dir() else ''}{user}:{group} {path}"
    return chown if context.rootless or not about.st_uid else f"set QMD_UID={about.st_uid} and QMD_GID={about.st_gid} in .env, or: {chown}"
