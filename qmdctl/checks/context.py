"""What the checks look at, each gathered once, when the first check asks for it."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from qmdctl import monitors
from qmdctl.engine import Container, Engine
from qmdctl.errors import QmdError
from qmdctl.hardware import Gpu, Hardware, find_hardware
from qmdctl.process import Completed, run
from qmdctl.settings import Settings
from qmdctl.tailnet import SIDECARS

Run = Callable[..., Completed]
MODEL_KEYS = {"embed": ("EMBED_MODEL", "RERANK_MODEL"), "vllm": ("VLLM_MODEL",)}
IMAGE_KEYS = {
    **{"embed": "EMBED_IMAGE", "vllm": "VLLM_IMAGE", "ts-embed": "TAILSCALE_IMAGE", "ts-vllm": "TAILSCALE_IMAGE"},
    **monitors.IMAGE_KEYS,
}
GPU_KEYS = {"embed": "EMBED_GPU", "vllm": "VLLM_GPU"}
DESKTOP = "Docker Desktop"
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Unavailable(Exception):
    """What a check needs is not there, and another check says why: it is skipped with these words."""


class Context:
    """`services`: those that are to be started, with what they depend on; None: all that are configured.

    `runner` runs programs, `hardware` is what was found: tests give their own.
    """

    def __init__(
        self, settings: Settings, services: Sequence[str] | None = None, *, runner: Run = run, hardware: Hardware | None = None
    ) -> None:
        self.settings = settings
        named = settings.services if services is None else services
        self.services = list(dict.fromkeys(["embed", *named] if {"vllm", *SIDECARS, *monitors.IMAGE_KEYS} & set(named) else named))
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
    def remote(self) -> bool:
        """Whether the engine runs on another machine. An address on loopback may be a tunnel's end; the engine's own name tells."""
        if self.engine_error:
            return False
        address = urlsplit(self.engine.host)
        if address.scheme in ("unix", "npipe"):
            return False
        return self.info.get("Name") != platform.node() and not (self.desktop and address.hostname in LOOPBACK)

    @property
    def desktop(self) -> bool:
        """Whether it is Docker Desktop, whose engine has a virtual machine of its own: its disk and its user ids are not this machine's."""
        return not self.engine_error and self.info.get("OperatingSystem") == DESKTOP

    @property
    def rootless(self) -> bool:
        return "name=rootless" in self._security

    @property
    def remapped(self) -> bool:
        """Whether the engine gives the containers' user ids other numbers (userns-remap)."""
        return "name=userns" in self._security

    @property
    def _security(self) -> list[str]:
        return [] if self.engine_error else self.info.get("SecurityOptions") or []

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
        for service in self.services:
            if service in IMAGE_KEYS:
                try:
                    found[service] = self.engine.client.images.get(self.image(service)).attrs
                except APIError:
                    continue
        return found

    def gpu_names(self, service: str) -> list[str]:
        """The indices or UUIDs that EMBED_GPU or VLLM_GPU names, several with commas between; none for other services."""
        return [name.strip() for name in self.settings[GPU_KEYS[service]].split(",")] if service in GPU_KEYS else []

    def find_gpu(self, name: str) -> Gpu | None:
        """By its index, its UUID or the beginning of one, as NVIDIA's toolkit does."""
        begun = (gpu for gpu in self.hardware.gpus if len(name) > len("GPU-") and gpu.uuid.startswith(name))
        return self.hardware.gpu(name) or next(begun, None)

    @property
    def gpus(self) -> list[Gpu]:
        """The GPUs that these services take, each once. What they name otherwise is left out: gpu_host says so."""
        names = [name for service in self.services for name in self.gpu_names(service)]
        if "all" in names:
            return list(self.hardware.gpus)
        return list(dict.fromkeys(gpu for name in names if (gpu := self.find_gpu(name))))

    def models(self) -> dict[str, str]:
        """{key: model} of the services that run; one model for two keys is there twice."""
        return {key: self.settings[key] for service in self.services for key in MODEL_KEYS.get(service, ()) if self.settings[key]}

    @property
    def hub_cache(self) -> Path | None:
        """The hub's folder in HF_CACHE_DIR; None where models lie in a volume, which only the engine can read."""
        folder = self.settings["HF_CACHE_DIR"]
        return (self.settings.project.folder / Path(folder).expanduser()).resolve() / "hub" if folder.startswith((".", "/", "~")) else None

    @cached_property
    def weights_may_be_here(self) -> bool:
        """Whether weights may lie where nobody here looks: in the models volume, which outlives `down`, or in another user's cache."""
        from docker.errors import NotFound

        if self.hub_cache is not None:
            try:
                self.hub_cache.stat()
            except PermissionError:
                return True
            except OSError:
                return False
            return not os.access(self.hub_cache, os.R_OK | os.X_OK)
        if self.engine_error:
            return False
        try:
            self.engine.client.volumes.get(f"{self.settings.name}_models")
        except NotFound:
            return bool(self.containers)
        return True
