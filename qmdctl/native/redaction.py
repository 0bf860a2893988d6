"""What is read from units and containers may hold secrets; this is how it may be shown."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

from qmdctl import env_file

# --api-key, --hf-token, --ssl-key-password; not --tokenizer or --max-num-batched-tokens.
OPTION = re.compile(r"--(?:[\w-]*[-_])?(?:key|token|secret|password)")
ASSIGNED = re.compile(r"((?:-e|--env=)?\w*(?:TOKEN|KEY|SECRET|PASSWORD)\w*=).", re.IGNORECASE)
VARIABLE = re.compile(r"((?:-e|--env=)?\b\w*(?:TOKEN|KEY|SECRET|PASSWORD)\w*=)(?:'[^']*'|\"[^\"]*\"|\S+)", re.IGNORECASE)
USER = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^\s'\"]*@", re.IGNORECASE)
TOKEN = re.compile(r"\bhf_\w{8,}")
# In a shell's text all words up to the next option: --api-key takes several.
IN_TEXT = re.compile(rf"({OPTION.pattern})(?:=|\s+)(?:'[^']*'|\"[^\"]*\"|\S+)(?:\s+(?![-&|;])\S+)*")


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
        known = bool(OPTION.fullmatch(name))
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
    for pattern, replacement in ((IN_TEXT, r"\1 …"), (VARIABLE, r"\1…"), (USER, r"\1…@"), (TOKEN, "…")):
        value = pattern.sub(replacement, value)
    return value


def command(words: Iterable[str]) -> str:
    """A command line as it may be shown."""
    return shlex.join(redacted(words))


def value(key: str, there: str) -> str:
    """A value of .env as it may be shown."""
    return text(env_file.shown(key, there))
