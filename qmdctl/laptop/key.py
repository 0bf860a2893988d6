"""The API key of a call: from a file or the environment, never from the command line, where `ps` and the shell's history keep it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from qmdctl.errors import ConfigurationError

VARIABLE = "QMD_API_KEY"


def read_key(file: Path | None, environment: Mapping[str, str] = os.environ) -> str | None:
    """The first key that stands in `file` as plain text, else QMD_API_KEY; None where neither is given.

    ConfigurationError for a file that cannot be read or has none, and for a key that no header can carry.
    """
    key = environment.get(VARIABLE, "").strip()
    origin = VARIABLE
    if file is not None:
        origin = f"--key-file: {file}"
        try:
            lines = [line.strip() for line in file.expanduser().read_text("utf-8-sig").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{origin} cannot be read: {error}", "name a file with the key alone") from None
        plain = [line for line in lines if line and not line.startswith(("#", "sha256:"))]
        if not plain:
            raise ConfigurationError(f"{origin} has no key as plain text, only digests or nothing", "name a file with the key alone")
        key = plain[0]
    if any(not "!" <= character <= "~" for character in key):
        raise ConfigurationError(f"{origin}: a key is printable ASCII without spaces", "name a file with the key alone")
    return key or None
