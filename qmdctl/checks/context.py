"""What the checks look at, each gathered once, when the first check asks for it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from qmdctl.engine import Container, Engine
from qmdctl.errors import QmdError
from qmdctl.hardware import Hardware, find_hardware
from qmdctl.process import Completed, run
from qmdctl.settings import Settings

Run = Callable[..., Completed]
MODEL_KEYS = {"embed": ("EMBED_MODEL", "RERANK_MODEL"), "vllm": ("VLLM_MODEL",)}
IMAGE_KEYS = {"embed": "EMBED_IMAGE", "vllm": "VLLM_IMAGE"}


class Unavailable(Exception):
    """What a check needs is not there, and another check says why: it is skipped with these words."""


class Context:
    """`runner` runs programs, `hardware` is what was found: tests give their own."""

    def __init__(self, settings: Settings, *, runner: Run = run, hardware: Hardware | None = None) -> None:
        self.settings = settings
        self.run = runner
        if hardware is not None:
            self.__dict__["hardware"] = hardware

    @cached_property
    def hardware(self) -> Hardware:
        return find_hardware()

    @cached_property
    def _engine(self) -> Engine | QmdError:
        try:
            return Engine.connect()
        except QmdError as error:
            return error

    @property
    def engine_error(self) -> QmdError | None:
        return self._engine if isinstance(self._engine, QmdError) else None

    @property
    def engine(self) -> Engine:
        if isinstance(self._engine, QmdError):
            raise Unavailable("no engine")
        return self._engine

    @cached_property
    def info(self) -> dict[str, Any]:
        return self.engine.info()

    @cached_property
    def containers(self) -> dict[str, Container]:
        return self.engine.containers(self.settings.name)

    @property
    def local(self) -> bool:
        """Whether the engine runs on this machine, so that its disk and its ports can be looked at."""
        return self.engine.host.startswith("unix://")

    @property
    def gpu_mode(self) -> bool:
        return not self.settings.cpu

    def image(self, service: str) -> str:
        return self.settings[IMAGE_KEYS[service]]

    @cached_property
    def images(self) -> dict[str, dict[str, Any]]:
        """`docker image inspect` of each service's image that is here."""
        from docker.errors import APIError

        found = {}
        for service in self.settings.services:
            if service in IMAGE_KEYS:
                try:
                    found[service] = self.engine.client.images.get(self.image(service)).attrs
                except APIError:
                    continue
        return found

    def models(self) -> dict[str, str]:
        """{key: model} of the services that run; one model for two keys is there twice."""
        return {key: self.settings[key] for service in self.settings.services for key in MODEL_KEYS.get(service, ()) if self.settings[key]}

    @property
    def hub_cache(self) -> Path | None:
        """The hub's folder in HF_CACHE_DIR; None where models lie in a volume, which only the engine can read."""
        folder = self.settings["HF_CACHE_DIR"]
        return (self.settings.project.folder / Path(folder).expanduser()).resolve() / "hub" if folder.startswith((".", "/", "~")) else None
