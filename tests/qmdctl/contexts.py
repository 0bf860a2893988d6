"""What the tests of the checks look at: FAKE hardware, a FAKE engine, recorded answers of programs."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from docker.errors import NotFound

from qmdctl.checks import Context, Finding, run_checks
from qmdctl.engine import Engine
from qmdctl.errors import MissingError
from qmdctl.hardware import Gpu, Hardware
from qmdctl.process import Completed
from tests.qmdctl.projects import settings_of

GIB = 1 << 30


def gpu(
    name: str = "NVIDIA GeForce RTX 4090", memory: int | None = 24 * GIB, driver: str = "580.95", capability: tuple[int, int] = (8, 9)
) -> Gpu:
    return Gpu(0, "GPU-1", name, memory, memory, driver, capability)


def machine(*gpus: Gpu, memory: int = 64 * GIB, wsl: bool = False, error: str = "") -> Hardware:
    return Hardware("Linux", "amd64", memory, memory, wsl, gpus, error)


class NoEngine(Context):
    """A context without an engine; `answers`: command's second word → what the program says."""

    def __init__(
        self,
        folder: Path,
        hardware: Hardware,
        values: dict[str, str] | None = None,
        images: dict[str, Any] | None = None,
        services: Sequence[str] | None = None,
    ) -> None:
        super().__init__(settings_of(folder, values), services, runner=self._run, hardware=hardware)
        self.__dict__["_engine"] = MissingError("no engine", "start it")
        self.answers = {"version": Completed((), 0, "2.30.0\n", ""), "config": Completed((), 0, "", "")}
        if images is not None:
            self.__dict__["images"] = images

    def _run(self, command: list[str], **options: Any) -> Completed:
        return self.answers[next(word for word in command[2:] if not word.startswith("-"))]


class FakeEngine(NoEngine):
    """A context with a FAKE engine: what it says of itself is `info`; it has these volumes and containers, and no image."""

    def __init__(self, *arguments: Any, host: str = "unix:///var/run/docker.sock", volumes: Sequence[str] = (), **more: Any) -> None:
        self_info = {"Name": platform.node(), "ServerVersion": "28.2.2", "Architecture": "x86_64", **more.pop("info", {})}
        running = more.pop("containers", {})
        super().__init__(*arguments, **more)

        def volume(name: str) -> None:
            if name not in volumes:
                raise NotFound(name)

        client: Any = SimpleNamespace(
            volumes=SimpleNamespace(get=volume),
            api=SimpleNamespace(inspect_container=lambda id: {"Mounts": [{"Destination": "/models"}, {"Destination": "/cache"}]}),
        )
        self.__dict__ |= {"_engine": Engine(client, host), "info": self_info, "containers": running}
        self.__dict__.setdefault("images", {})


ROOTLESS = {"SecurityOptions": ["name=seccomp,profile=builtin", "name=rootless", "name=cgroupns"]}

DESKTOP = {"Name": "docker-desktop", "OperatingSystem": "Docker Desktop"}

REMOTE = {"Name": "spark-1234"}


def levels(context: Context, name: str) -> list[str]:
    return [finding.level for finding in found(context, name)]


def found(context: Context, name: str) -> list[Finding]:
    return list(run_checks(context, [name]))


def one(context: Context, name: str, level: str) -> Finding:
    (finding,) = [finding for finding in found(context, name) if finding.level == level]
    return finding
