"""Whether a model fits in memory beside the others, by the plan that `qmdctl doctor` makes as well.

What the running stack holds counts as free: the old model goes before the new one loads, and the others are part of the plan.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from qmdctl.catalog.cached import Cache
from qmdctl.catalog.roles import ROLES, Role
from qmdctl.errors import ConfigurationError, QmdError
from qmdctl.hardware import Hardware
from qmdctl.models.budget import make_budget, measure, plan_from
from qmdctl.models.known import KNOWN
from qmdctl.models.plan import Place, Plan
from qmdctl.models.size import weight_bytes
from qmdctl.settings import Settings

FIELDS = {"embed": "embed_model", "rerank": "rerank_model", "generate": "generate_model"}


@dataclass(frozen=True)
class Fit:
    """`fits` None: it cannot be computed, and `sentence` says why. Bytes of the whole plan with the model in it, and of what is there."""

    fits: bool | None
    sentence: str
    fix: str = ""
    planned_bytes: int | None = None
    available_bytes: int | None = None

    def payload(self) -> dict[str, Any]:
        numbers = {"planned_bytes": self.planned_bytes, "available_bytes": self.available_bytes}
        return {"fits": self.fits, **numbers, "why": self.sentence}


class Memory:
    """The machine's memory as it would be without the stack, and the plan in force. `running`: the services that hold theirs now."""

    def __init__(self, settings: Settings, hardware: Hardware, cache: Cache | None, running: Collection[str]) -> None:
        profiles = "generation" if "vllm" in settings.services else ""
        self._settings, self._cache, self._running = settings, cache, running
        self._given: dict[str, Mapping[str, Any]] = {}
        self._plan: Plan | None = None
        self._error = ""
        self._hardware = hardware
        try:
            self._plan = plan_from({**settings, "COMPOSE_PROFILES": profiles}, cpu=settings.cpu)
            self._hardware = self._returned(hardware, self._plan, running)
        except (ValueError, OverflowError) as error:
            self._error = str(error)
        except QmdError as error:  # of a model that runs now nothing is known: what is free is what is counted
            self._error = "" if self._plan else error.message

    def judge(self, changes: Mapping[Role, str], configs: Mapping[str, Mapping[str, Any]] | None = None) -> Fit:
        """The plan with these models in their places. `configs`: config.json of those that are not in the cache yet."""
        if self._plan is None:
            return Fit(None, f"the memory plan cannot be computed: {self._error}")
        self._given = dict(configs or {})
        plan = replace(self._plan, **{FIELDS[role.name]: model for role, model in changes.items()})  # type: ignore[arg-type]
        try:
            budget = make_budget(plan, self._config, self._hardware)
            before = self._before(self._plan)
        except QmdError as error:
            return Fit(None, f"the memory plan cannot be computed: {error.message}", error.fix)
        except (KeyError, OverflowError) as error:
            return Fit(None, f"the memory plan cannot be computed: {error}")
        place = max(budget.places, key=lambda place: place.planned_bytes - (place.available_bytes or 0))
        numbers = (place.planned_bytes, place.available_bytes)
        if not budget.problems:
            return Fit(True, place.sentence(), "", *numbers)
        problem = budget.problems[0]
        if (
            self._running
            and before is not None
            and before[1] == {one.setting for one in budget.problems}
            and place.planned_bytes <= before[0]
        ):
            return Fit(True, f"{place.sentence()}; no more than what runs now", "", *numbers)
        return Fit(False, problem.message.removesuffix(". Not starting"), problem.fix, *numbers)

    def weights(self, role: Role, model: str) -> int | None:
        """Bytes in memory, in the precision in force; None where its sizes are not known."""
        try:
            dtype = self._dtype(role)
            return weight_bytes(self._config(model), dtype)
        except QmdError:
            return None

    def _dtype(self, role: Role) -> str:
        value = self._settings["VLLM_DTYPE" if role.name == "generate" else "DTYPE"]
        return ("float32" if self._settings.cpu else "bfloat16") if value in ("", "auto") else value

    def _config(self, model: str) -> Mapping[str, Any]:
        found = self._given.get(model) or (self._cache.config(model) if self._cache else KNOWN.get(model))
        if not found:
            raise ConfigurationError(f"the config.json of {model} is not known", "qmdctl pull downloads it")
        return found

    def _before(self, plan: Plan) -> tuple[int, set[str]] | None:
        try:
            budget = make_budget(plan, self._config, self._hardware)
        except QmdError:
            return None
        return max(place.planned_bytes for place in budget.places), {problem.setting for problem in budget.problems}

    def _returned(self, hardware: Hardware, plan: Plan, running: Collection[str]) -> Hardware:
        """With what the running services hold given back."""
        if not running:
            return hardware
        places = measure(plan, self._config, hardware).places
        if plan.cpu or not hardware.gpus or hardware.unified:
            back = sum(_held(place, running) for place in places)
            return replace(hardware, available_bytes=min(hardware.memory_bytes, hardware.available_bytes + back))
        by_name = {place.name: _held(place, running) for place in places}
        gpus = []
        for gpu in hardware.gpus:
            free = gpu.free_bytes
            if free is not None:
                free += by_name.get(f"GPU {gpu.index} ({gpu.name})", 0)
                free = min(gpu.memory_bytes or free, free)
            gpus.append(replace(gpu, free_bytes=free))
        return replace(hardware, gpus=tuple(gpus))


def _held(place: Place, running: Collection[str]) -> int:
    """vLLM takes its whole share when it starts; the embed service its weights and what a micro-batch needs, up to its cap."""
    return sum(
        part.bytes if part.service == "vllm" else min(part.bytes, part.fixed_bytes) for part in place.parts if part.service in running
    )


def role_of(model: str) -> Role:
    """The place that a model of the table of known ones is for, by its name."""
    name = model.lower()
    if "rerank" in name:
        return ROLES["rerank"]
    return ROLES["embed"] if "embed" in name or KNOWN[model].get("model_type") in ("bert", "nomic_bert") else ROLES["generate"]


def known_fits(memory: Memory, roles: Collection[str]) -> list[tuple[Role, str, int | None, Fit]]:
    """(role, model, bytes of its weights in memory, whether it fits in its place beside the others) of each known model, largest first."""
    rows = [(role_of(model), model) for model in KNOWN]
    found = [(role, model, memory.weights(role, model), memory.judge({role: model})) for role, model in rows if role.name in roles]
    order = list(ROLES)
    return sorted(found, key=lambda row: (order.index(row[0].name), -(row[2] or 0)))
