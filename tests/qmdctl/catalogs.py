"""A machine for `models use` without an engine: the embed service as a process, its own commands on this machine, a FAKE hub."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx

from qmdctl.catalog.cached import read_cache
from qmdctl.catalog.fits import Memory
from qmdctl.catalog.roles import Role
from qmdctl.catalog.served import Served, look_served
from qmdctl.catalog.switch import ControlSwitch, Models
from qmdctl.engine import Container
from qmdctl.errors import QmdError
from qmdctl.hardware import Hardware
from qmdctl.inside import Inside, Lines, json_lines
from qmdctl.probes import Broken, Probe
from qmdctl.settings import Settings, load_settings
from qmdctl.terminal import Terminal
from tests.support.service import ROOT, ServiceProcess

GIB = 1 << 30


class Local:
    """The embed service's commands as processes of this machine."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        keep = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
        self.environment = {**keep, "DEVICE": "cpu", "DTYPE": "float32", **environment}

    def lines(self, *arguments: str) -> Lines:
        yield from json_lines([sys.executable, "-m", "embed_service", *arguments], ROOT, self.environment)


class Told(Terminal):
    """A terminal that keeps what it is told; `on_note` is called with each line."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []
        self.on_note: Callable[[str], None] = lambda text: None

    def note(self, text: str, style: str = "") -> None:
        self.notes.append(text)
        self.on_note(text)

    @property
    def text(self) -> str:
        return "\n".join(self.notes)


class LocalMachine:
    """`service` runs, or not; `memory_bytes` is what the machine is said to have."""

    def __init__(self, settings: Settings, terminal: Terminal, environment: Mapping[str, str], service: ServiceProcess | None) -> None:
        self.project, self.terminal, self.environment, self.service = settings.project, terminal, environment, service
        self.memory_bytes = 64 * GIB

    @property
    def settings(self) -> Settings:
        return load_settings(self.project, environment={})

    def inside(self, flags: Mapping[str, str]) -> Inside:
        models = ("EMBED_MODEL", "RERANK_MODEL", "EMBED_REVISION", "RERANK_REVISION")
        return Local({**self.environment, **{key: self.settings[key] for key in models}, **flags})

    @property
    def control(self) -> Inside | None:
        return Local(self.service.environment) if self.service else None

    @property
    def containers(self) -> dict[str, Container]:
        if self.service is None:
            return {}
        given = {key: self.service.environment[key] for key in ("EMBED_MODEL", "RERANK_MODEL")}
        facts: dict[str, Any] = {"exit_code": 0, "oom_killed": False, "error": "", "restart_count": 0}
        facts |= {"started_at": None, "finished_at": None}
        return {
            "embed": Container(
                service="embed", name="qmd-embed", id="1", image="embed", state="running", health="healthy", pid=1, environment=given,
                ports={"8001/tcp": self.service.port}, **facts,
            )
        }  # fmt: skip

    def served(self) -> dict[str, Served]:
        return look_served(self.settings, self.containers, self.control)

    def memory(self) -> Memory:
        hardware = Hardware("Linux", "amd64", self.memory_bytes, self.memory_bytes)
        return Memory(self.settings, hardware, read_cache(self.inside({})), ["embed"] if self.service else [])

    def port_stays_open(self, role: Role) -> bool:
        return self.control is not None

    def switch(self, role: Role, before: Models, after: Models, flags: Mapping[str, str]) -> dict[str, Any]:
        assert self.control is not None
        return ControlSwitch(self.control, self.terminal, self.prove).run(before, after)

    def prove(self) -> None:
        assert self.service is not None
        probe = Probe("embed", self.service.url, 60)
        with probe.client:
            try:
                probe.embedding()
                probe.rerank()
            except Broken as error:
                raise QmdError(error.why) from None

    def dimensions(self) -> int:
        """Of a vector that the service answers now."""
        assert self.service is not None
        answer = httpx.post(f"{self.service.url}/v1/embeddings", json={"input": ["a"]}, timeout=60)
        assert answer.status_code == 200, answer.text
        return len(answer.json()["data"][0]["embedding"])

    def env_text(self) -> str:
        return Path(self.project.env_path).read_text()


class Scripted:
    """A FAKE of the embed service's commands: each call prints the next list of lines."""

    def __init__(self, *answers: list[dict[str, Any]]) -> None:
        self.answers, self.asked = list(answers), list[tuple[str, ...]]()

    def lines(self, *arguments: str) -> Lines:
        self.asked.append(arguments)
        yield from self.answers.pop(0)
