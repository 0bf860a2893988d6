"""`python -m qmdctl` as users run it: a process of its own, on the tests' own Docker engine."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qmdctl import env_file
from tests.support.service import ROOT

DOCKER_HOST = os.environ.get("QMD_TEST_DOCKER_HOST", "unix:///run/qmd-test-engine/docker.sock")


@dataclass(frozen=True)
class Ran:
    """Exit status and both outputs."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class Qmdctl:
    """For the project in `folder`; what it remembers stays beside it."""

    folder: Path
    home: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "qmdctl", "--project", str(self.folder), *arguments]

    def full_environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """Nothing of the caller's own but the way to programs: a COMPOSE_* of a developer's would change the stack."""
        keep = {key: os.environ[key] for key in ("PATH", "LANG", "SSL_CERT_FILE") if key in os.environ}
        own = {"HOME": str(self.home), "XDG_STATE_HOME": str(self.home), "PYTHONPATH": str(ROOT), "DOCKER_HOST": DOCKER_HOST}
        # The tags of a history would keep every test's images on the engine; tests of the history take it back.
        own["QMDCTL_NO_RECORD"] = "1"
        return {**keep, **own, **self.environment, **(extra or {})}

    def run(self, *arguments: str, env: Mapping[str, str] | None = None, seconds: float = 240) -> Ran:
        done = subprocess.run(
            self.command(*arguments),
            cwd=self.home,
            env=self.full_environment(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """The process, running, with its stderr in a pipe."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, "text": True, **options}
        return subprocess.Popen(self.command(*arguments), cwd=self.home, env=self.full_environment(), **options)

    def value(self, key: str) -> str:
        """A key's value in .env."""
        return env_file.read(self.folder / ".env").check().values[key]

    def set(self, **values: str) -> None:
        """Give keys of .env new values."""
        path = self.folder / ".env"
        lines = [line for line in path.read_text().splitlines() if line.split("=")[0] not in values]
        path.write_text("".join(f"{line}\n" for line in [*lines, *(f"{key}='{value}'" for key, value in values.items())]))


class DockerError(RuntimeError):
    """What docker said, where it failed."""


def docker(*arguments: str) -> str:
    """The docker command on the tests' engine; its output. DockerError where it fails."""
    done = subprocess.run(["docker", "--host", DOCKER_HOST, *arguments], capture_output=True, text=True, check=False, timeout=120)
    if done.returncode:
        raise DockerError(f"docker {shlex.join(arguments)} ended with status {done.returncode}: {done.stderr}{done.stdout}")
    return done.stdout.strip()


def said(container: str, since: str = "") -> str:
    """Both streams of a container's log, from the time `since` (RFC 3339)."""
    command = ["docker", "--host", DOCKER_HOST, "logs", *(["--since", since] if since else []), container]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True, timeout=120).stdout
