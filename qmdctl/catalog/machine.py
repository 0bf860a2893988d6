"""The stack on its engine, as `models` reads and changes it: containers of the embed image, its control socket, Compose."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from qmdctl.catalog.cached import Cache, Need, history_needs, read_cache
from qmdctl.catalog.fits import Memory
from qmdctl.catalog.roles import ROLES, Role, configured
from qmdctl.catalog.served import Served, control_status, given, look_served
from qmdctl.catalog.switch import ControlSwitch, Models, Recreate
from qmdctl.compose import Compose
from qmdctl.engine import Container, Engine
from qmdctl.errors import QmdError
from qmdctl.hardware import find_hardware
from qmdctl.inside import Inside, OneOff, Running
from qmdctl.probes import Broken, Locked, Probe
from qmdctl.settings import Settings, load_settings
from qmdctl.startup.display import make_display
from qmdctl.startup.estimate import make_estimate
from qmdctl.startup.watch import EngineSource, Watch
from qmdctl.state import State
from qmdctl.terminal import Terminal

Keys = Callable[[], AbstractContextManager[str | None]]
PROVEN = {"embed": ("embedding",), "rerank": ("rerank",), "generate": ("completion", "chat")}
PROOF_SECONDS = 60.0


class StackMachine:
    """`keys` gives an API key for the requests that prove a switch, valid in its block. `limit`: seconds for the new model to be ready."""

    def __init__(self, settings: Settings, engine: Engine, terminal: Terminal, keys: Keys, limit: float | None = None) -> None:
        self.settings, self.engine, self.terminal = settings, engine, terminal
        self._keys, self._limit = keys, limit

    @property
    def containers(self) -> dict[str, Container]:
        return self.engine.containers(self.settings.name)

    def compose(self, flags: Mapping[str, str] | None = None) -> Compose:
        settings = load_settings(self.settings.project, flags) if flags else self.settings
        return Compose(settings, self.terminal)

    def inside(self, flags: Mapping[str, str]) -> Inside:
        return OneOff(self.compose(flags))

    def reader(self) -> Inside:
        """For a look: the running container answers at once, one of its own takes seconds."""
        embed = self.containers.get("embed")
        if embed is not None and embed.running:
            return Running(self.compose(), echo=False)
        return OneOff(self.compose(), echo=False)

    @cached_property
    def control(self) -> Inside | None:
        """The running embed service's control socket; None where it does not run, or has none."""
        embed = self.containers.get("embed")
        if embed is None or not embed.running:
            return None
        running = Running(self.compose(), echo=False)
        return running if control_status(running) else None

    def served(self) -> dict[str, Served]:
        return look_served(self.settings, self.containers, self.control)

    @cached_property
    def cache(self) -> Cache:
        return read_cache(self.reader())

    def memory(self) -> Memory:
        holding = {one.role.service for one in self.served().values() if one.state in ("ok", "loading")}
        try:
            cache: Cache | None = self.cache
        except QmdError:
            cache = None
        return Memory(self.settings, find_hardware(), cache, holding)

    def needs(self) -> list[Need]:
        """What must stay in the cache: served, configured, given to a container, recorded for a rollback."""
        found = []
        for served in self.served().values():
            if served.id:
                found.append(Need(served.id, served.revision or self._pinned(served.id, None), f"{served.role.name}, served"))
        for role in ROLES.values():
            model, revision = configured(self.settings, role)
            if model:
                found.append(Need(model, self._pinned(model, revision), f"{role.key} in .env"))
            container = self.containers.get(role.service)
            if container is not None:
                model, revision = given(container, role)
                found.append(Need(model, self._pinned(model, revision), f"{container.name} was made with it, until the next qmdctl up"))
        return [*found, *history_needs(self.settings.project.folder)]

    def _pinned(self, model: str, revision: str | None) -> str | None:
        return self.cache.commit(model, revision)

    def port_stays_open(self, role: Role) -> bool:
        return role.service == "embed" and self.control is not None

    def switch(self, role: Role, before: Models, after: Models, flags: Mapping[str, str]) -> dict[str, Any]:
        def prove() -> None:
            self.prove(after)

        if self.port_stays_open(role):
            return ControlSwitch(Running(self.compose()), self.terminal, prove, self._limit).run(before, after)
        Recreate(role.service, self.terminal, lambda new: self._make(role.service, flags if new else {}), self._waiter(role), prove).run()
        return {}

    def prove(self, models: Models) -> None:
        """Real requests. QmdError on the first that fails; one that a lock refuses proves that the service answers."""
        roles = list(models)
        port = next(iter(self.containers[roles[0].service].ports.values()), 0)
        with self._keys() as key:
            probe = Probe(roles[0].service, f"http://127.0.0.1:{port}", PROOF_SECONDS, key if roles[0].service == "embed" else None)
            links = {name: getattr(probe, name) for role in roles for name in PROVEN[role.name]}
            if roles[0].service == "vllm":
                links = {"models": lambda: probe.models(models[roles[0]][0]), **links}
            with probe.client:
                for name, link in links.items():
                    try:
                        seen = link()
                    except Broken as error:
                        raise QmdError(f"{name}: {error.why}", error.fix) from None
                    except Locked as refusal:
                        seen = str(refusal)
                    self.terminal.note(f"✓ {name}: {seen}")

    def _make(self, service: str, flags: Mapping[str, str]) -> None:
        """With `flags` over .env, or with .env alone. The image that is here is taken: another one is not what was asked for."""
        self._began = datetime.now(UTC)
        self.compose(flags).run("up", "--detach", "--no-deps", "--no-build", service)

    def _waiter(self, role: Role) -> Callable[[], None]:
        def wait() -> None:
            source = EngineSource(self.engine, self.settings.project.folder)
            with make_display(self.terminal, make_estimate(self.settings, State())) as display:
                watch = Watch(source, self.settings.name, [role.service], display, facts=self.settings, began=self._began)
                watch.run(self._limit)

        return wait
