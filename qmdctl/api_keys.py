"""The file of API keys: digests alone, changed in place, whole at every moment.

The embed service has this very file (a compose secret is a bind mount, so a new file in its place would not be seen) and may read it at any
moment. So a line is never moved, and a change takes effect by the first byte of its line:

    # laptop 2026-01-31                       the name and the day, a comment for the service
    sha256:5e88…                              a key; `#ha256:…` while it is being written, and from the moment when it is revoked

What breaks off in between leaves a comment: it lets nobody in, and locks nobody out. Who writes holds a lock on the file.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from qmdctl.env_file import refused
from qmdctl.errors import ConfigurationError

PREFIX = "qmd_"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
NAMED = re.compile(rf"# ({NAME.pattern}) (\d{{4}}-\d\d-\d\d)")
LINE = re.compile(rb"[^\r\n]*(?:\r\n|\r|\n|$)")
MARK, MARK_IN_FORCE = "#ha256:", b"s"  # the beginning of a digest's line that does not count, and the byte that makes it count
FREE = re.compile(rf"{MARK}[0-9a-f]{{64}}\n".encode())
HEALTH = "qmdctl-health"  # whose keys last for one call


@dataclass(frozen=True)
class Key:
    """A line with a key. `name` and `added` are None where no comment above tells them; `at` is its first byte, `size` its bytes."""

    name: str | None
    added: str | None
    digest: str  # 64 hexadecimal digits
    plain: bool
    at: int
    size: int

    @property
    def shown(self) -> str:
        """What tells it from others: the start of its digest."""
        return self.digest[:12]


@dataclass(frozen=True)
class KeyFile:
    """The keys, the numbers of lines that are no key (the service ignores them), and where `passing_key` finds records to use again."""

    keys: list[Key] = field(default_factory=list)
    unusable: list[int] = field(default_factory=list)
    free: list[int] = field(default_factory=list)

    def named(self, name: str) -> list[Key]:
        return [key for key in self.keys if key.name == name]


def parse(content: bytes, path: Path) -> KeyFile:
    """As the embed service reads it (embed_service/routes/auth.py). ConfigurationError for bytes that are not UTF-8."""
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f"{path} is not UTF-8 (byte {error.start}): the service accepts no key from it", "save it as UTF-8"
        ) from None
    file = KeyFile()
    name = added = None
    for number, match in enumerate(LINE.finditer(content, 3 if content.startswith(b"\xef\xbb\xbf") else 0), 1):
        line = match[0].decode()
        text = line.strip()
        begin = match.start() + len(line[: line.find(text)].encode())
        record = f"# {HEALTH} {added}\n".encode()
        if not text.startswith("#") and text:
            digest = _digest(text)
            if digest is None:
                file.unusable.append(number)
            else:
                file.keys.append(Key(name, added, digest, not text.startswith("sha256:"), begin, len(text.encode())))
        elif FREE.fullmatch(match[0]) and content[:begin].endswith(record):
            file.free.append(begin - len(record))
        comment = NAMED.fullmatch(text)
        name, added = (comment[1], comment[2]) if comment else (None, None)
    return file


def _digest(text: str) -> str | None:
    if not text.startswith("sha256:"):
        return hashlib.sha256(text.encode()).hexdigest()
    try:
        digest = bytes.fromhex(text.removeprefix("sha256:").strip())
    except ValueError:
        return None
    return digest.hex() if len(digest) == 32 else None


def read(path: Path) -> KeyFile:
    """The keys in the file; none where there is no file. ConfigurationError where it cannot be read."""
    try:
        return parse(path.read_bytes(), path)
    except FileNotFoundError:
        return parse(b"", path)
    except OSError as error:
        raise refused(path, error, "read") from None


def add(path: Path, name: str, owner: tuple[int, int] | None = None) -> str:
    """Make a key, put its digest into the file and return it: it is stored nowhere.

    The file is made where there is none, for its owner alone; `owner`: user and group that root gives it to. ConfigurationError for a
    name that is taken or is none, and where the file cannot be written.
    """
    check_name(name)
    with _locked(path, make=True, owner=owner) as handle:
        file = parse(_content(handle), path)
        if there := file.named(name):
            raise ConfigurationError(
                f"There is a key {name!r} already, of {there[0].added}", f"choose another name, or first: qmdctl keys revoke {name}"
            )
        key = PREFIX + secrets.token_urlsafe(32)
        _record(handle, name, key)
    return key


def check_name(name: str) -> None:
    """ConfigurationError for a name that the file cannot hold or that is qmdctl's own."""
    if not NAME.fullmatch(name):
        raise ConfigurationError(
            f"{name!r} cannot be a key's name", "take up to 64 of the letters a to z, digits and . _ @ -, a letter or digit first"
        )
    if name == HEALTH:
        raise ConfigurationError(f"{name} is the name of the keys that qmdctl health makes for itself", "choose another name")


def revoke(path: Path, which: str) -> tuple[list[Key], int]:
    """Take back the key with this name, or whose digest begins so (8 digits or more). Its lines, and how many keys are left.

    A key that stands in the file twice is taken back in both places. ConfigurationError where there is none, or several begin so.
    """
    with _locked(path) as handle:
        file = parse(_content(handle), path)
        found = file.named(which)
        if not found and re.fullmatch(r"[0-9a-f]{8,64}", which.lower()):
            found = [key for key in file.keys if key.digest.startswith(which.lower())]
        digests = {key.digest for key in found}
        if not found or (len(digests) > 1 and not file.named(which)):
            several = "Several keys have a digest that begins with" if found else "There is no key"
            raise ConfigurationError(f"{several} {which!r} in {path}", "qmdctl keys list")
        gone = [key for key in file.keys if key.digest in digests]
        for key in gone:
            if not key.plain:  # a plain key may begin with a letter of several bytes
                _write(handle, b"#", key.at)
            _write(handle, _remains(key), key.at)
    return gone, len([key for key in file.keys if key.digest not in digests and key.name != HEALTH])


@contextlib.contextmanager
def passing_key(path: Path) -> Iterator[str]:
    """A key that works inside this block alone. Its place in the file is used again by the next one.

    One that was left behind by a process that was killed is known to nobody; its place is used again from the day after the next.
    ConfigurationError where the file cannot be written.
    """
    key = PREFIX + secrets.token_urlsafe(32)
    digest = hashlib.sha256(key.encode()).hexdigest()
    with _locked(path) as handle:
        file = parse(_content(handle), path)
        yesterday = (datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)).date().isoformat()
        for old in file.named(HEALTH):
            if old.added and old.added < yesterday:
                _write(handle, b"#", old.at)
        free = parse(_content(handle), path).free
        _record(handle, HEALTH, key, at=free[0] if free else None)
    try:
        yield key
    finally:
        if path.exists():
            with _locked(path) as handle:
                for place in parse(_content(handle), path).keys:
                    if place.digest == digest:
                        _write(handle, b"#", place.at)


def _record(handle: int, name: str, key: str, at: int | None = None) -> None:
    """The two lines of a key, in the place of a record of the same name, else at the end."""
    lead = ""
    if at is None:
        content = _content(handle)
        at = len(content)
        lead = "" if not content or content.endswith((b"\n", b"\r")) else "\n"
    comment = f"{lead}# {name} {_today()}\n"
    _write(handle, f"{comment}{MARK}{hashlib.sha256(key.encode()).hexdigest()}\n".encode(), at)
    _write(handle, MARK_IN_FORCE, at + len(comment))


def _remains(key: Key) -> bytes:
    """What stands in a revoked key's place, of the same length: a plain key would still be legible."""
    text = f"# revoked on {_today()}".encode()
    return text.ljust(key.size) if len(text) <= key.size else b"#" * key.size


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def _content(handle: int) -> bytes:
    return os.pread(handle, os.fstat(handle).st_size, 0)


def _write(handle: int, text: bytes, at: int) -> None:
    """On the disk before the next: a crash must not keep the later change and lose the earlier."""
    while text:
        written = os.pwrite(handle, text, at)
        text, at = text[written:], at + written
    os.fsync(handle)


@contextlib.contextmanager
def _locked(path: Path, *, make: bool = False, owner: tuple[int, int] | None = None) -> Iterator[int]:
    """The file, open and locked; with `make` made where there is none. ConfigurationError where that cannot be done."""
    try:
        handle = _open_locked(path, make, owner)
        try:
            yield handle
        finally:
            os.close(handle)
    except OSError as error:
        raise refused(path, error, "written") from None


def _open_locked(path: Path, make: bool, owner: tuple[int, int] | None) -> int:
    while True:
        try:
            handle = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            if not make:
                raise
            with contextlib.suppress(FileExistsError):
                made = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
                if owner and os.geteuid() == 0:
                    os.fchown(made, *owner)
                os.close(made)
            continue
        fcntl.flock(handle, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        os.close(handle)  # an editor put another file in its place in the meantime
