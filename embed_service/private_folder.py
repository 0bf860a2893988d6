"""A folder that only this user can enter, at a path that others know."""

from __future__ import annotations

import os
import stat
from pathlib import Path

__all__ = ["make_private"]


def make_private(folder: Path) -> None:
    """Make it with mode 0700, or take the one that is there. Raises PermissionError where that is another's, open to others, or a link."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise PermissionError(f"{folder} is not this user's alone. Remove it, or name a folder of this user with mode 0700.")
