"""The steps of a migration: what each does, and its reversal. Both look first, so that doing either twice changes nothing.

A step that fails raises; one that finds its work done already returns. `facts` are what was true before it, as the journal keeps them.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qmdctl import env_file
from qmdctl.engine import Engine
from qmdctl.errors import QmdError
from qmdctl.native.containers import NativeContainer, inspected, parse
from qmdctl.native.journal import Journal
from qmdctl.native.tailscale import Entry as ServeEntry
from qmdctl.native.tailscale import entries, find_serving
from qmdctl.native.units import PROPERTIES, Manager, Unit
from qmdctl.native.units import parse as parse_unit
from qmdctl.process import Completed, run
from qmdctl.terminal import Terminal

STOP_SECONDS = 60  # as the seed's unit gives vLLM


@dataclass
class Machine:
    """What steps act on."""

    folder: Path
    engine: Engine
    journal: Journal
    terminal: Terminal
    owner: tuple[int, int] | None = None
    runner: Callable[..., Completed] = run

    def change(self, command: list[str], needs_root: bool = False) -> None:
        """Run a command that changes the machine; it is echoed. ProcessError when it fails."""
        full = as_root(command) if needs_root else command
        self.terminal.echo_command(shlex.join(full))
        self.runner(full)

    def unit(self, facts: Mapping[str, Any]) -> Unit | None:
        manager = Manager(facts["user"])
        names = ",".join((*PROPERTIES, "ExecStart"))
        done = self.runner(manager.command("show", f"{facts['name']}.service", f"--property={names}"))
        return parse_unit(facts["name"], manager, done.stdout)

    def container(self, identifier: str) -> NativeContainer | None:
        inspect = inspected(self.engine, identifier)
        return parse(inspect) if inspect else None


@dataclass(frozen=True)
class Step:
    """`commands`: what will be run, for the plan. `facts`: see above."""

    kind: str
    title: str
    facts: dict[str, Any] = field(default_factory=dict)
    commands: tuple[tuple[str, ...], ...] = ()
    needs_root: bool = False
    text: str = field(default="", repr=False)  # of .env

    def shown(self) -> list[str]:
        """The commands as a user would type them."""
        return [shlex.join(as_root(list(command)) if self.needs_root else command) for command in self.commands]

    def payload(self) -> dict[str, Any]:
        return {"kind": self.kind, "title": self.title, "commands": self.shown(), "needs_root": self.needs_root}


def as_root(command: list[str]) -> list[str]:
    return command if os.geteuid() == 0 else ["sudo", *command]


def unit_step(unit: Unit) -> Step:
    facts = {
        "name": unit.name,
        "user": unit.manager.user,
        "active": unit.active,
        "enabled": unit.enabled,
        "linked": unit.linked,
    }
    whose = f"{unit.manager.user}'s unit" if unit.manager.user else "the unit"
    verbs = [*(["disable"] if unit.enabled else []), *(["stop"] if unit.active else [])]
    commands = tuple(tuple(unit.manager.command(verb, unit.file)) for verb in verbs)
    return Step("unit", f"{' and '.join(verbs)} {whose} {unit.file}; its file stays", facts, commands, unit.manager.needs_root)


def container_step(container: NativeContainer, new_name: str) -> Step:
    facts = {
        "id": container.id,
        "name": container.name,
        "new_name": new_name,
        "restart": container.restart,
        "running": container.running,
    }
    return Step("container", f"stop the container {container.name} and rename it {new_name}", facts, tuple(_moving(container, new_name)))


def _moving(container: NativeContainer, new_name: str) -> list[tuple[str, ...]]:
    return [
        *([("docker", "update", "--restart=no", container.name)] if container.restart != "no" else []),
        *([("docker", "stop", "-t", str(STOP_SECONDS), container.name)] if container.running else []),
        ("docker", "rename", container.name, new_name),
    ]


def service_step(name: str, config: Mapping[str, Any], needs_root: bool) -> Step:
    facts = {"name": name, "config": config}
    title = f"withdraw this machine from the Tailscale Service {name}; its configuration stays"
    return Step("service", title, facts, (("tailscale", "serve", "drain", name),), needs_root)


def serve_step(entry: ServeEntry, needs_root: bool) -> Step:
    return Step("serve", f"end {entry.sentence()}", entry.payload(), (tuple(entry.off()),), needs_root)


def env_step(path: Path, text: str) -> Step:
    return Step("env", f"{'change' if path.exists() else 'write'} {path}", {}, (), False, text)


def facts_now(step: Step, machine: Machine) -> dict[str, Any]:
    """What the journal keeps of the step; of .env a copy is made."""
    if step.kind != "env":
        return step.facts
    path = machine.folder / ".env"
    name = f"env.{len(machine.journal.entries) + 1}"
    machine.journal.write_file(f"{name}.written", step.text)
    if not path.exists():
        return {"copy": None, "written": f"{name}.written"}
    about = path.stat()
    machine.journal.write_file(name, path.read_bytes().decode("utf-8"))
    return {"copy": name, "written": f"{name}.written", "mode": stat.S_IMODE(about.st_mode), "uid": about.st_uid, "gid": about.st_gid}


def do(step: Step, machine: Machine) -> None:
    """Take the step."""
    facts = step.facts
    if step.kind == "env":
        env_file.write(machine.folder / ".env", step.text, machine.owner)
    elif step.kind == "unit":
        unit = machine.unit(facts)
        if unit and unit.enabled:
            machine.change(unit.manager.command("disable", unit.file), step.needs_root)
        if unit and unit.active:
            machine.change(unit.manager.command("stop", unit.file), step.needs_root)
    elif step.kind == "container":
        container = machine.container(facts["id"])
        # A unit that was stopped before may have taken it along.
        if container and container.name == facts["name"]:
            for command in _moving(container, facts["new_name"]):
                machine.change(list(command))
    elif step.kind == "service":
        if facts["name"] in find_serving({}, machine.runner).advertised:
            machine.change(["tailscale", "serve", "drain", facts["name"]], step.needs_root)
    elif step.kind == "serve":
        entry = serve_entry(facts)
        if entry in entries(find_serving({}, machine.runner).config):
            machine.change(entry.off(), step.needs_root)


def undo(kind: str, facts: dict[str, Any], machine: Machine) -> str:
    """Reverse a step of which it is not known whether it happened. The sentence says what could not be reversed; empty: all."""
    return REVERSALS[kind](facts, machine)


def back_title(kind: str, facts: Mapping[str, Any]) -> str:
    """What the reversal does, for people."""
    if kind == "env":
        return ".env as it was before" if facts["copy"] else "remove .env, which was not there before"
    if kind == "unit":
        verbs = [*(["enable"] if facts["enabled"] else []), *(["start"] if facts["active"] else [])]
        return f"{' and '.join(verbs)} the unit {facts['name']}.service"
    if kind == "container":
        return f"rename the container {facts['new_name']} back to {facts['name']}{' and start it' if facts['running'] else ''}"
    if kind == "service":
        return f"advertise the Tailscale Service {facts['name']} from this machine"
    return f"serve again: {serve_entry(facts).sentence()}"


def undo_env(facts: dict[str, Any], machine: Machine) -> str:
    path, said = machine.folder / ".env", ""
    written = machine.journal.folder / facts.get("written", "env.written")
    text = machine.journal.read_file(facts["copy"]) if facts["copy"] else None
    if path.exists():
        now = path.read_bytes().decode("utf-8", "replace")
        if now != text and written.exists() and now != machine.journal.read_file(written.name):
            said = f".env was edited since; that version is in {machine.journal.keep('env.edited', now)}"
        if text is None:
            path.unlink()
    if text is not None:
        env_file.write(path, text)
        path.chmod(facts["mode"])
        if os.geteuid() == 0:
            os.chown(path, facts["uid"], facts["gid"])
    return said


def undo_unit(facts: dict[str, Any], machine: Machine) -> str:
    manager, file = Manager(facts["user"]), f"{facts['name']}.service"
    unit = machine.unit(facts)
    if facts["enabled"] and (unit is None or not unit.enabled):
        machine.change(manager.command("enable", facts["linked"] or file), manager.needs_root)
    if facts["active"] and (unit is None or not unit.active):
        machine.change(manager.command("start", file), manager.needs_root)
    return ""


def undo_container(facts: dict[str, Any], machine: Machine) -> str:
    container = machine.container(facts["id"])
    if container is None:
        return f"the container {facts['name']} ({facts['id'][:12]}) is gone: it was removed since"
    if container.name == facts["new_name"]:
        other = machine.container(facts["name"])
        if other is not None:
            raise QmdError(f"A container {facts['name']} is there: the old one cannot have its name back", f"docker rename {other.name} …")
        machine.change(["docker", "rename", container.name, facts["name"]])
    elif container.name != facts["name"]:
        return f"the container {facts['name']} was renamed {container.name} since, and stays"
    if container.restart != facts["restart"]:
        machine.change(["docker", "update", f"--restart={facts['restart']}", facts["name"]])
    if facts["running"] and not container.running:
        machine.change(["docker", "start", facts["name"]])
    return ""


def undo_service(facts: dict[str, Any], machine: Machine) -> str:
    serving = find_serving({}, machine.runner)
    name = facts["name"]
    if serving.problem:
        raise QmdError(serving.problem, f"then again: qmdctl migrate --undo (or: tailscale serve advertise {name})")
    if name not in serving.services:
        for entry in entries(facts["config"], name):
            machine.change(entry.command(), serving.needs_root)
    if name not in serving.advertised:
        machine.change(["tailscale", "serve", "advertise", name], serving.needs_root)
    return ""


def undo_serve(facts: dict[str, Any], machine: Machine) -> str:
    entry, serving = serve_entry(facts), find_serving({}, machine.runner)
    if entry not in entries(serving.config):
        machine.change(entry.command(), serving.needs_root)
    return ""


def serve_entry(facts: Mapping[str, Any]) -> ServeEntry:
    return ServeEntry(**{key: facts[key] for key in ("service", "kind", "port", "path", "target", "funnel")})


REVERSALS: dict[str, Callable[[dict[str, Any], Machine], str]] = {
    "env": undo_env,
    "unit": undo_unit,
    "container": undo_container,
    "service": undo_service,
    "serve": undo_serve,
}
