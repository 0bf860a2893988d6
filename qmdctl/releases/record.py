"""The history in `.qmdctl/history/` of a project: a folder NNNN for each start that became healthy.

record.json    the number, when, this project's release, images, models, seconds, how it ended
compose.yaml   the effective compose file, secrets taken out
env            .env, secrets taken out
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qmdctl.env_file import refused
from qmdctl.errors import ConfigurationError
from qmdctl.lock import FOLDER

READY, FAILED = "ready", "failed"
NUMBERED = re.compile(r"\d{4,}")
VERSION = 1


@dataclass(frozen=True)
class Release:
    """Of this project's files. `commit` is empty where the folder is no git checkout; `dirty`: tracked files were changed."""

    version: str = ""
    commit: str = ""
    tag: str = ""
    branch: str = ""
    dirty: bool = False

    @property
    def text(self) -> str:
        """ "v0.2.0", "0.1.0 (04a3185c1)"; with "and changes" where files were changed."""
        name = self.tag or (f"{self.version} ({self.commit[:9]})" if self.commit else self.version or "unknown")
        return f"{name} and changes" if self.dirty else name


@dataclass(frozen=True)
class Image:
    """What a service's container was made from.

    `name` as the compose file has it, `id` and `digest` (NAME@sha256:…, empty for one built here) as the engine has it, `key` the
    setting that names it (empty: none does), `kept` the tag that holds it.
    """

    name: str
    id: str
    digest: str = ""
    key: str = ""
    kept: str = ""


@dataclass(frozen=True)
class Record:
    """`models`: setting → MODEL@COMMIT, the commit left out where the cache does not tell. `secret_keys`: left out of `env`."""

    number: int
    at: str
    title: str
    release: Release
    services: list[str]
    images: dict[str, Image]
    models: dict[str, str]
    fingerprint: str = ""
    seconds: float = 0.0
    result: str = READY
    note: str = ""
    secret_keys: list[str] = field(default_factory=list)

    @property
    def ready(self) -> bool:
        return self.result == READY

    def payload(self) -> dict[str, Any]:
        return {"version": VERSION, **asdict(self)}


@dataclass(frozen=True)
class Texts:
    """The files beside record.json; empty for a start that failed."""

    compose: str = ""
    env: str = ""


class History:
    """The records of a project, by number. What is half-written or damaged is left out, and `notes` says so."""

    def __init__(self, project: Path) -> None:
        self.folder = project / FOLDER / "history"
        self.notes: list[str] = []
        self.records: list[Record] = []
        for name in self._names():
            try:
                self.records.append(_record(json.loads((self.folder / name / "record.json").read_text(encoding="utf-8"))))
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                self.notes.append(f"{self.folder / name} is left out: its record cannot be read ({error or type(error).__name__})")

    @property
    def current(self) -> Record | None:
        """What became healthy last."""
        return next((one for one in reversed(self.records) if one.ready), None)

    def find(self, number: int) -> Record:
        """ConfigurationError where there is none of that number."""
        found = next((one for one in self.records if one.number == number), None)
        if found is None:
            numbers = ", ".join(str(one.number) for one in self.records) or "none yet"
            raise ConfigurationError(f"The history has no number {number}", f"qmdctl history lists them: {numbers}")
        return found

    def before(self, record: Record) -> Record | None:
        """The healthy one before it."""
        return next((one for one in reversed(self.records) if one.ready and one.number < record.number), None)

    def texts(self, record: Record) -> Texts:
        """ConfigurationError where a file cannot be read."""
        folder = self.folder / f"{record.number:04}"
        read = {}
        for name in ("compose.yaml", "env"):
            try:
                read[name] = (folder / name).read_text(encoding="utf-8")
            except UnicodeDecodeError:
                raise ConfigurationError(f"{folder / name} is not UTF-8", "choose another number: qmdctl history") from None
            except OSError as error:
                raise refused(folder / name, error, "read") from None
        return Texts(read["compose.yaml"], read["env"])

    @property
    def next_number(self) -> int:
        return max((int(name) for name in self._names()), default=0) + 1

    def write(self, record: Record, texts: Texts) -> None:
        """Add a record: written beside and renamed, so that it is there whole or not at all. OSError where it cannot be."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob(".new-*"):
            shutil.rmtree(left, ignore_errors=True)  # of a command that was killed
        beside = self.folder / f".new-{os.getpid()}"
        try:
            beside.mkdir()
            files = {"record.json": json.dumps(record.payload(), indent=1, ensure_ascii=False) + "\n"}
            files |= {"compose.yaml": texts.compose, "env": texts.env} if record.ready else {}
            for name, text in files.items():
                with open(os.open(beside / name, os.O_WRONLY | os.O_CREAT, 0o600), "w", encoding="utf-8") as out:
                    out.write(text)
                    out.flush()
                    os.fsync(out.fileno())
            beside.rename(self.folder / f"{record.number:04}")
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        self.records.append(record)

    def remove(self, record: Record) -> None:
        """ConfigurationError where the folder cannot be removed."""
        folder = self.folder / f"{record.number:04}"
        try:
            shutil.rmtree(folder)
        except OSError as error:
            raise refused(folder, error, "removed") from None
        self.records.remove(record)

    def _names(self) -> list[str]:
        try:
            return sorted((one.name for one in self.folder.iterdir() if NUMBERED.fullmatch(one.name)), key=int)
        except OSError:
            return []


def _record(data: Mapping[str, Any]) -> Record:
    """KeyError, TypeError or ValueError for what is none; what a later version added is passed over."""
    if data["version"] != VERSION:
        raise ValueError(f"version {data['version']}")
    images = {str(service): Image(**_known(Image, image)) for service, image in data["images"].items()}
    values = {**_known(Record, data), "release": Release(**_known(Release, data["release"])), "images": images}
    record = Record(**values)
    texts = [*record.models.values(), *record.services, *record.secret_keys, record.at, record.title, record.result]
    if not isinstance(record.number, int) or not all(isinstance(text, str) for text in texts):
        raise ValueError("a field has the wrong type")
    return record


def _known(kind: Any, data: Mapping[str, Any]) -> dict[str, Any]:
    return {name: data[name] for name in kind.__dataclass_fields__ if name in data}
