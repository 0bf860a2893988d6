"""Whether files have changed since the container that was made from them started: `git pull` tells Compose nothing."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from qmdctl.engine import Container
from qmdctl.monitors import READS_WHEN_IT_STARTS

# embed's image is built from these; the others have their folder mounted and read it when they start.
SOURCES = {
    "embed": ("Dockerfile.embed", "embed_service", "requirements/service.txt", "requirements/bootstrap.txt", "scripts/bootstrap"),
    "vllm": ("vllm",),
    **dict.fromkeys(READS_WHEN_IT_STARTS, ("monitoring",)),
}


def outdated(folder: Path, container: Container) -> bool:
    """Whether a file of its sources is newer than its start. A file dated in the future counts as written now."""
    if container.started_at is None:
        return True
    newest = max((path.stat().st_mtime for path in _files(folder, container.service)), default=0.0)
    return min(newest, datetime.now(UTC).timestamp()) > container.started_at.timestamp()


def newer(path: Path, container: Container) -> bool:
    """Whether a file that is not empty was written after the container's start."""
    try:
        about = path.stat()
    except OSError:
        return False
    return about.st_size > 0 and container.started_at is not None and about.st_mtime > container.started_at.timestamp()


def _files(folder: Path, service: str) -> Iterator[Path]:
    for name in SOURCES.get(service, ()):
        path = folder / name
        yield from [path] if path.is_file() else (one for one in path.rglob("*") if one.is_file() and one.suffix != ".pyc")
