"""The memory that the plan takes, against what is there: an overcommitted start hangs a machine with unified memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from qmdctl.checks.context import GPU_KEYS, Context, Unavailable
from qmdctl.checks.finding import Finding
from qmdctl.errors import QmdError
from qmdctl.models.budget import make_budget, plan_from
from qmdctl.models.known import model_config


def check(context: Context) -> Iterator[Finding]:
    settings, hardware = context.settings, context.hardware
    if context.gpu_mode and hardware.gpus and not hardware.unified:
        for service in context.services:
            if service in GPU_KEYS and hardware.gpu(settings[GPU_KEYS[service]]) is None:
                raise Unavailable(f"the memory of {GPU_KEYS[service]}={settings[GPU_KEYS[service]]} is not known")
    try:
        profiles = "generation" if "vllm" in context.services else ""
        plan = plan_from({**settings, "COMPOSE_PROFILES": profiles}, cpu=settings.cpu)
        if "embed" not in settings.services:  # on another box (qmdctl scale)
            plan = replace(plan, embed_model=None, rerank_model=None)
        budget = make_budget(plan, lambda model: model_config(model, context.hub_cache), hardware)
    except ValueError as error:
        yield Finding("memory", "failure", str(error), "", "correct it in .env", True)
        return
    except (KeyError, OverflowError) as error:  # a DTYPE that is none, an infinite size: env_lint names them
        raise Unavailable(f"the memory plan cannot be computed: {error}") from None
    except QmdError as error:
        yield Finding("memory", "warning", f"the memory plan cannot be computed: {error.message}", "", error.fix)
        return
    there = {} if context.engine_error else context.containers
    running = [name for name in GPU_KEYS if name in there and there[name].running]
    for problem in budget.problems:
        short = problem.message.startswith("Planned:")
        if short and running:
            # What the stack itself holds is not free, and is about to be given back or is part of the plan.
            yield Finding("memory", "skipped", f"{', '.join(running)} runs: what is free now says nothing about the plan", problem.message)
        else:
            yield Finding("memory", "failure", problem.message, f"see {problem.setting}", problem.fix, configuration=not short)
    if not budget.problems:
        for place in budget.places:
            details = "; ".join(f"{part.service}: {part.detail}" for part in place.parts)
            yield Finding("memory", "ok", place.sentence(), details)
