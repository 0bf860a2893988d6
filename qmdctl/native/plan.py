"""What taking over does: the steps in their order, the text of .env, and what is left to the owner."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from qmdctl import env_file
from qmdctl.engine import Engine
from qmdctl.env_file import EnvFile
from qmdctl.errors import ConfigurationError
from qmdctl.native.containers import NativeContainer, inspected
from qmdctl.native.found import Found
from qmdctl.native.steps import Step, container_step, env_step, serve_step, service_step, unit_step
from qmdctl.native.values import Value, Values
from qmdctl.project import Project
from qmdctl.proposal import Proposal
from qmdctl.redaction import command_lines

TAILNET_KEYS = ("TAILNET_SERVICE", "EMBED_HOSTNAME", "VLLM_HOSTNAME", "TS_TAGS")
# A kept value of these means another vector for the same text.
VECTORS = ("EMBED_MODEL", "PROMPT_POLICY")


@dataclass
class Plan:
    """`values`: what .env gets. `kept`: values found that .env has otherwise and keeps, with what it has."""

    steps: list[Step]
    values: list[Value]
    kept: list[tuple[Value, str]]
    notes: list[str]
    owner: list[str]
    problems: list[ConfigurationError] = field(default_factory=list)

    def payload(self) -> dict[str, Any]:
        return {
            "steps": [{"number": number, **step.payload()} for number, step in enumerate(self.steps, 1)],
            "values": [value.payload() for value in self.values],
            "kept": [{**value.payload(), "in_env": command_lines.value(value.key, there)} for value, there in self.kept],
            "notes": self.notes,
            "owner": self.owner,
            "problems": [problem.payload() for problem in self.problems],
        }

    def lines(self) -> Iterator[str]:
        """For people."""
        for number, step in enumerate(self.steps, 1):
            yield f"  {number}. {step.title}"
            yield from (f"       $ {command}" for command in step.shown())
            if step.kind == "env":
                width = max((len(value.key) + len(command_lines.value(value.key, value.value)) for value in self.values), default=0) + 1
                for value in self.values:
                    yield f"       {f'{value.key}={command_lines.value(value.key, value.value)}'.ljust(width)}  # {value.origin}"
        if self.kept:
            yield "Kept as .env has it (--overwrite takes what was found):"
            yield from self.kept_lines()
        if self.notes:
            yield "Note:"
            yield from (f"  - {note}" for note in self.notes)
        if self.owner:
            yield "Yours to do:"
            yield from (f"  - {task}" for task in self.owner)
        yield from (f"✗ {problem.message}\n  → {problem.fix}" for problem in self.problems)

    def kept_lines(self) -> Iterator[str]:
        for value, there in self.kept:
            shown = command_lines.value(value.key, value.value)
            yield f"  - {value.key}={command_lines.value(value.key, there)}; found: {shown} ({value.origin})"


def env_text(
    project: Project, values: Values, proposal: Proposal | None, overwrite: bool
) -> tuple[str, list[Value], list[tuple[Value, str]]]:
    """.env as it will be, what is put into it, and what of `values` it has otherwise and keeps.

    `proposal`: for a project without .env, with `values` in it already.
    """
    if proposal is not None:
        file = env_file.read(project.folder / ".env.example").check()
        proposal.apply(file)
        origin = f"preset {proposal.preset.name}, by the hardware"
        return file.render(), [values.values.get(key) or Value(key, value, origin) for key, value in proposal.values.items()], []
    file = env_file.read(project.env_path).check()
    put, kept = merge(file, values.values, overwrite)
    return file.render(), put, kept


def merge(file: EnvFile, values: Mapping[str, Value], overwrite: bool) -> tuple[list[Value], list[tuple[Value, str]]]:
    """Put `values` into a parsed .env: a key that has another value there keeps it, unless `overwrite`."""
    put: list[Value] = []
    kept: list[tuple[Value, str]] = []
    profiles = values.get("COMPOSE_PROFILES")
    # The names stay with this machine's own tailscaled where .env does not start the sidecars.
    sidecars = overwrite or not file.values.get("COMPOSE_PROFILES") or "tailnet" in file.values["COMPOSE_PROFILES"]
    for key, value in values.items():
        there = file.values.get(key)
        if there == value.value or (key in TAILNET_KEYS and profiles and not sidecars):
            continue
        if there and not overwrite:
            kept.append((value, there))
        else:
            file.set(key, value.value)
            put.append(value)
    return put, kept


def make_plan(
    found: Found, values: Values, engine: Engine, project: Project, env: tuple[str, list[Value], list[tuple[Value, str]]]
) -> Plan:
    """Steps: .env first, which changes nothing that runs; then what holds names and ports. `env`: from `env_text`."""
    text, put, kept = env
    plan = Plan([], put, kept, list(values.notes), list(values.owner))
    if put or not project.env_path.exists():
        plan.steps.append(env_step(project.env_path, text))
    final = env_file.parse(text).values
    root = found.serving.needs_root
    if "COMPOSE_PROFILES" in values.values and "TAILNET_SERVICE" in values.values:
        if "tailnet" in final.get("COMPOSE_PROFILES", "").split(","):
            services = found.serving.config["Services"]
            plan.steps += [service_step(name, services[name], root) for name in found.advertised]
        else:
            plan.owner = [task for task in plan.owner if "admin console" not in task]
            plan.notes.append("COMPOSE_PROFILES in .env has no tailnet: this machine's tailscaled goes on serving the Services")
    plan.steps += [unit_step(unit) for unit in found.active_units]
    for container in found.containers:
        if container.removes_itself and container.name == "qmd-vllm" and found.unit_runs_container:
            continue  # stopping its unit removes it
        if container.removes_itself:
            plan.problems.append(
                ConfigurationError(
                    f"The container {container.name} was started with --rm, and not by a unit: once stopped it is gone for good",
                    f"note its command line (docker inspect {container.name}), docker stop {container.name}, then qmdctl migrate again",
                )
            )
            continue
        plan.steps.append(container_step(container, free_name(engine, container)))
        if container.compose_project:
            plan.notes.append(f"{container.name} is of the Compose project {container.compose_project}, which may start it again")
    _ports(found, final, plan)
    for value, there in kept:
        if value.key in VECTORS:
            plan.notes.append(
                f"{value.key} stays {there}: an index made with {value.value} has to be made again (qmd embed -f on each laptop)"
            )
    return plan


def clear_steps(found: Found) -> list[Step]:
    """Steps that end the node's own serve entries for the two ports. One that is open to the internet is its owner's to close."""
    return [serve_step(entry, found.serving.needs_root) for entry in found.serving.node if not entry.funnel]


def free_name(engine: Engine, container: NativeContainer) -> str:
    """NAME-before, or the first NAME-before-N that no container has."""
    name, number = f"{container.name}-before", 1
    while inspected(engine, name):
        number += 1
        name = f"{container.name}-before-{number}"
    return name


def _ports(found: Found, final: Mapping[str, str], plan: Plan) -> None:
    """Where what stays leads to a port that the stack will not have."""
    for service, key in (("embed", "EMBED_PORT"), ("vllm", "VLLM_PORT")):
        old, new = found.port(service), final.get(key) or str(found.port(service))
        drained = {step.facts["name"] for step in plan.steps if step.kind == "service"}
        leads = found.serving.node or set(found.advertised) - drained
        if str(old) != new and leads:
            plan.notes.append(f"{key}={new}, and tailscale serves port {old}: those addresses will not answer")
