"""Writing the archive. Redaction is here, at the only door, so that no part can pass it by."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import re
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from qmdctl.bundle.parts import Collected
from qmdctl.env_file import refused
from qmdctl.errors import ConfigurationError
from qmdctl.redaction.known import Redactor

MANIFEST = "manifest.txt"


def write_archive(path: Path, collected: Sequence[Collected], notes: Sequence[str], redactor: Redactor) -> list[tuple[str, int]]:
    """A tar.gz for its owner alone, whole or not at all. The (name, bytes) of what is in it.

    ConfigurationError where it cannot be written, or is there already.
    """
    folder = path.name.removesuffix(".tar.gz")
    members = [(MANIFEST, redactor.content(manifest(collected, notes).encode()))]
    for one in collected:
        if one.content or not one.failed:
            name = safe_name(redactor.text(one.part.name))
            again = sum(other == name or other.startswith(f"{name}.again-") for other, _ in members)
            members.append((f"{name}.again-{again}" if again else name, redactor.content(one.content)))
    top = safe_name(redactor.text(folder))
    with (
        _whole(path) as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name, content in members:
            entry = tarfile.TarInfo(f"{top}/{name}")
            entry.size, entry.mode, entry.mtime = len(content), 0o600, int(time.time())
            archive.addfile(entry, io.BytesIO(content))
    return [(name, len(content)) for name, content in members]


def manifest(collected: Sequence[Collected], notes: Sequence[str]) -> str:
    """Each part: its bytes or what failed, how it was got, the seconds that took."""
    lines = ["Bundle of qmdctl. Look at it before you send it; secrets are replaced by [redacted].", ""]
    lines += [f"! {note}" for note in notes]
    for one in collected:
        state = f"FAILED: {one.failed}" if one.failed else "ok"
        lines.append(f"{one.part.name}: {state}, {len(one.content)} bytes, {one.seconds:.1f} s; {one.part.how}")
    return "\n".join(lines) + "\n"


def safe_name(name: str) -> str:
    """A path that stays within the archive whatever a file was called."""
    parts = [re.sub(r"[^\w.@+ -]|^\.+$", "_", part) for part in name.split("/") if part]
    return "/".join(parts)[:200] or "_"


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[BinaryIO]:
    """A file of mode 0600 that takes its name once it is complete; nothing of it is left otherwise."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise refused(path, error, "written") from None
    try:
        with os.fdopen(handle, "wb") as raw:
            yield raw
            raw.flush()
            os.fsync(raw.fileno())
        _take_name(beside, path)
    except FileExistsError:
        raise ConfigurationError(f"{path} is there already", "--out with another name") from None
    except OSError as error:
        raise refused(path, error, "written") from None
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


def _take_name(beside: Path, path: Path) -> None:
    """FileExistsError instead of taking another file's place, as far as the file system knows links."""
    try:
        os.link(beside, path)
    except FileExistsError:
        raise
    except OSError:
        os.rename(beside, path)
