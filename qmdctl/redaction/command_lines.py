"""Command lines and values of .env as they may be shown and recorded: what is a secret in them becomes …, and all else stays as it is."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

from qmdctl.redaction.names import NAME, OPTION, secret_name, secret_option
from qmdctl.redaction.shapes import TOKENS

# NAME, -eNAME and --env=NAME
ASSIGNED = re.compile(rf"((?:--env=)?{NAME}=).", re.IGNORECASE)
VARIABLE = re.compile(rf"((?<![\w.-]){NAME}=)(?:'[^']*'|\"[^\"]*\"|\S+)", re.IGNORECASE)
USER = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^\s'\"]*@", re.IGNORECASE)
# In a shell's text all words up to the next option: --api-key takes several.
IN_TEXT = re.compile(rf"({OPTION})(?:=|\s+)(?:'[^']*'|\"[^\"]*\"|\S+)(?:\s+(?![-&|;])\S+)*")


def redacted(words: Iterable[str]) -> list[str]:
    """The words of a command line with … for the values of secret options and variables, and for the user in a URL."""
    shown: list[str] = []
    secret = first = False
    for word in words:
        if secret and (first or not word.startswith("-")):
            shown.append("…")
            first = False
            continue
        before = shown[-1] if shown else ""
        name, equals, _ = word.partition("=")
        known = secret_option(name)
        secret = first = known and not equals
        if known and equals:
            shown.append(f"{name}=…")
        elif (assigned := ASSIGNED.match(word)) and (" " not in word or before in ("-e", "--env") or word.startswith("-")):
            shown.append(f"{assigned[1]}…")
        else:
            shown.append(text(word))
    return shown


def text(value: str) -> str:
    """The same for text that is not split into words."""
    for pattern, replacement in ((IN_TEXT, r"\1 …"), (VARIABLE, r"\1…"), (USER, r"\1…@"), (TOKENS, "…")):
        value = pattern.sub(replacement, value)
    return value


def command(words: Iterable[str]) -> str:
    """A command line as it may be shown."""
    return shlex.join(redacted(words))


def value(name: str, there: str) -> str:
    """A variable's value as it may be shown."""
    return "…" if there and secret_name(name) else text(there)
