"""A plan that does not fit: the figure to lower, where that is enough, else smaller models."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from qmdctl.models.plan import GB, Budget, Place, Plan, Problem

FIELDS = {"VLLM_GPU_MEMORY_UTILIZATION": "utilization", "VLLM_KV_CACHE_GB": "kv_cache_gb", "EMBED_MEMORY_GB": "embed_memory_gb"}
Measure = Callable[[Plan], Budget]


def overcommit(place: Place, plan: Plan, measured: Budget, measure: Measure) -> Problem:
    """The sentence on a place that does not fit. Figures are named only where the plan with them was measured and has no other problem."""
    over = place.planned_bytes - (place.available_bytes or 0)
    missing = f"{over / GB:.1f} GB are missing"
    # Where the whole memory is too small, freeing some of it does not help.
    stop = "stop what uses the memory, or " if place.planned_bytes <= place.total_bytes else ""
    message = f"{place.sentence()}. Not starting"
    for changes in _lowered(place, plan, over):
        if _helps(changes, place, plan, measured, measure):
            values = " and ".join(f"{key}={value}" for key, value in changes.items())
            return Problem(next(iter(changes)), message, f"set {values} in .env, or {stop}choose smaller models (qmdctl init): {missing}")
    largest = max(((part.bytes, part.service) for part in place.parts), default=(0, "embed"))[1]
    keys = {"vllm": "VLLM_KV_CACHE_GB", "embed": "EMBED_MEMORY_GB"}
    none = "" if place.memory == "cpu" else f"; a lower {' or '.join(keys[part.service] for part in place.parts)} is not enough"
    setting = "VLLM_MODEL" if largest == "vllm" else "EMBED_MODEL"
    return Problem(setting, message, f"{stop}choose smaller models (qmdctl init): {missing}{none}")


def _lowered(place: Place, plan: Plan, over: int) -> Iterator[dict[str, str]]:
    """Sets of figures, rounded down, that take `over` bytes from one service; whether its models still fit is not looked at."""
    if place.memory == "cpu":
        return
    parts = {part.service: part for part in place.parts}
    if "vllm" in parts:
        target, changes = parts["vllm"].bytes - over, {}
        if place.total_bytes and int(plan.utilization * place.total_bytes) > target:
            changes["VLLM_GPU_MEMORY_UTILIZATION"] = _down(target / place.total_bytes, 2)
        if plan.kv_cache_gb is not None and parts["vllm"].fixed_bytes + plan.kv_cache_gb * GB > target:
            changes["VLLM_KV_CACHE_GB"] = _down((target - parts["vllm"].fixed_bytes) / GB, 1)
        yield changes
    if "embed" in parts and plan.embed_memory_gb is not None:
        yield {"EMBED_MEMORY_GB": _down(plan.embed_memory_gb - over / GB, 1)}


def _helps(changes: Mapping[str, str], place: Place, plan: Plan, measured: Budget, measure: Measure) -> bool:
    values = {FIELDS[key]: float(value) for key, value in changes.items()}
    if not values or min(values.values()) <= 0:
        return False
    after = measure(replace(plan, **values))  # type: ignore[arg-type]
    fits = any(other.name == place.name and other.fits for other in after.places)
    return fits and set(after.problems) <= set(measured.problems)


def _down(value: float, digits: int) -> str:
    """Rounded down, so that what is written is never more than what is there."""
    scale = 10**digits
    return f"{math.floor(value * scale) / scale:g}"
