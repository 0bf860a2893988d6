"""The grammar of `.env`: the part on which Docker Compose and python-dotenv agree. Everything else is a problem with a line and a fix.

    # a comment                     KEY=plain text # a comment
    KEY=                            KEY='literal: $HOME, # and "quotes" stay'
    export KEY=value                KEY="text with # inside"

Where the two readers differ ($ outside single quotes, backslashes inside quotes, values over several lines, a key without =, a key
given twice), the line is refused, since the stack would see one value and another tool a different one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shlex
import stat
from dataclasses import dataclass, field
from pathlib import Path

from qmdctl.errors import ConfigurationError
from qmdctl.redaction.names import secret_name

KEY = re.compile(r"^(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_]*)=(.*)$")
PLAIN = re.compile(r"^[A-Za-z0-9_./:@%+,=~^-]*$")
FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Problem:
    """One line that cannot be used. `line` counts from 1."""

    line: int
    message: str
    fix: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.message}; {self.fix}"


@dataclass
class EnvFile:
    """A parsed file: `values` in force, the lines as they were, and what is wrong with them."""

    name: str
    lines: list[str] = field(default_factory=list)
    values: dict[str, str] = field(default_factory=dict)
    line_of: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def check(self) -> EnvFile:
        """Itself, or ConfigurationError that lists every problem."""
        if self.problems:
            first, *more = self.problems
            raise ConfigurationError(
                f"{self.name}, line {first.line}: {first.message}", first.fix, "\n".join(f"  {self.name}, {problem}" for problem in more)
            )
        return self

    def set(self, key: str, value: str) -> None:
        """Give `key` a value: on its own line, on the line where it is commented out (`# KEY=…`), or on a new last line."""
        line = f"{key}={quote(value)}"
        commented = re.compile(rf"^#[ \t]?{re.escape(key)}=")
        where = self.line_of.get(key) or next((i for i, text in enumerate(self.lines, 1) if commented.match(text)), None)
        if where is None:
            self.lines.append(line)
            where = len(self.lines)
        else:
            self.lines[where - 1] = line
        self.values[key], self.line_of[key] = value, where

    def unset(self, key: str) -> None:
        """Comment `key` out."""
        if key in self.line_of:
            index = self.line_of.pop(key) - 1
            self.lines[index] = f"# {self.lines[index]}"
            del self.values[key]

    def render(self) -> str:
        return "".join(f"{line}\n" for line in self.lines)


def read(path: Path) -> EnvFile:
    """Parse the file at `path`. ConfigurationError when it cannot be read or is not UTF-8."""
    try:
        return parse(path.read_bytes().decode("utf-8"), path.name)
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not UTF-8 (byte {error.start})", "save it as UTF-8") from None
    except OSError as error:
        raise refused(path, error, "read") from None


def write(path: Path, text: str, owner: tuple[int, int] | None = None) -> None:
    """Replace the file at once, so that a full disk leaves the old one. It keeps its mode and, where root writes, its owner.

    `owner`: user and group that root gives it to. ConfigurationError when it cannot be written.
    """
    path = path.resolve()  # a link stays one
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        before = path.stat() if path.exists() else None
        mode = stat.S_IMODE(before.st_mode) if before else 0o666
        with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        if before:
            beside.chmod(mode)
            owner = owner or (before.st_uid, before.st_gid)
        if owner and os.geteuid() == 0:
            os.chown(beside, *owner)
        beside.replace(path)
    except OSError as error:
        raise refused(path, error, "written") from None
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def refused(path: Path, error: OSError, what: str) -> ConfigurationError:
    """A file or folder that cannot be read or written, with the command that mends it: often root's, after a `sudo qmdctl init`."""
    places = [str(place) for place in (path.parent, path) if os.path.exists(place)]
    foreign = [place for place in places if os.stat(place).st_uid != os.geteuid()]
    if isinstance(error, PermissionError) and foreign:
        fix = f"sudo chown {os.geteuid()}:{os.getegid()} {shlex.join(foreign)}"
    else:
        fix = f"free some space: df -h {path.parent}" if error.errno in FULL else f"ls -ld {shlex.join(places)}"
    return ConfigurationError(f"{path} cannot be {what}: {error.strerror}", fix)


def shown(key: str, value: str) -> str:
    """The value as it may be printed: not that of a key that looks like a secret; one that ends in _FILE holds a path."""
    return "…" if value and secret_name(key) else value


def parse(text: str, name: str = ".env") -> EnvFile:
    """Parse `text`; what cannot be used is in `problems`, never raised."""
    file = EnvFile(name)
    if text.startswith("\ufeff"):
        file.problems.append(Problem(1, "the file begins with a byte order mark", "save it as UTF-8 without BOM"))
        text = text[1:]
    file.lines = text.split("\n")
    if file.lines[-1] == "":
        file.lines.pop()
    for number, line in enumerate(file.lines, 1):
        problem = _take(file, number, line)
        if problem:
            file.problems.append(Problem(number, *problem))
    return file


def _take(file: EnvFile, number: int, line: str) -> tuple[str, str] | None:
    """Put the value of one line into `file`, or say what is wrong and how to mend it."""
    if line.endswith("\r"):
        return "it ends with a carriage return", "save the file with Unix line ends (LF)"
    stripped = line.strip()
    if not stripped or stripped.startswith("#"):
        return None
    if "\0" in line:
        return "it holds a NUL", "remove it"
    match = KEY.match(stripped)
    if not match:
        word = stripped.split("=")[0].split()[0] if "=" in stripped else stripped
        if re.match(r"^[A-Za-z_][A-Za-z0-9_]*\s+=|^[A-Za-z_][A-Za-z0-9_]*=?\s*:", stripped) or re.match(r"^\w+: ", stripped):
            return f"“{word}” is not followed by = at once", "write KEY=value, without spaces around ="
        return f"“{word[:40]}” is not KEY=value", "write KEY=value, or begin the line with # for a comment"
    key, rest = match.groups()
    value, problem = _value(rest)
    if problem:
        return f"{key}: {problem[0]}", problem[1]
    if key in file.values:
        return f"{key} is given again (first in line {file.line_of[key]})", "keep one of the two"
    file.values[key], file.line_of[key] = value, number
    return None


def _value(rest: str) -> tuple[str, tuple[str, str] | None]:
    """The value after `=`, or ("", (what is wrong, fix))."""
    if rest[:1] in (" ", "\t"):
        # A shell would run the value as a command; Compose takes a comment that follows for the value.
        return ("", ("there is a space after =", "remove it")) if rest.strip() else ("", None)
    mark = rest[:1]
    if mark in ("'", '"'):
        end = rest.find(mark, 1)
        if "\\" in (rest[1:end] if end > 0 else rest):
            return "", ("a backslash inside quotes is read in two ways", "remove the quotes, or the backslash")
        if end < 0:
            return "", (f"the quote {mark} is not closed on its line", f"end the value with {mark}")
        tail = rest[end + 1 :]
        if tail.strip() and not re.match(r"^\s+#", tail):
            return "", ("text follows the closing quote", "put the whole value inside the quotes")
        value = rest[1:end]
        if mark == '"' and "$" in value:
            return "", ("a $ inside double quotes is read in two ways", f"use single quotes: '{value}'")
        return value, None
    value = re.sub(r"\s+#.*$", "", rest).rstrip()
    if "$" in value:
        return "", ("a $ without single quotes is read in two ways", f"write '{value}'")
    if value.startswith("#"):
        return "", ("a value that begins with # needs quotes", f"write '{value}'")
    if "'" in value or '"' in value or "`" in value:
        return "", ("a quote in the middle of a value is read in two ways", "put the whole value into the other kind of quotes")
    return value, None


def quote(value: str) -> str:
    """`value` as it is written after `=`. ConfigurationError for what the grammar cannot hold."""
    if PLAIN.match(value):
        return value
    if "\n" in value or "\r" in value or "\\" in value:
        raise ConfigurationError(f"{value!r} cannot be written to .env", "choose a value on one line without a backslash")
    if "'" not in value:
        return f"'{value}'"
    if '"' not in value and "$" not in value:
        return f'"{value}"'
    raise ConfigurationError(f"{value!r} cannot be written to .env", "choose a value without both kinds of quotes")
