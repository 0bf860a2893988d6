"""The memory that the plan takes, against what is there: an overcommitted start hangs a machine with unified memory."""

from __future__ import annotations

from collections.abc import Iterator

from qmdctl.checks.context import Context
from qmdctl.checks.finding import Finding
from qmdctl.errors import QmdError
from qmdctl.models.budget import make_budget, plan_from
from qmdctl.models.known import model_config


def check(context: Context) -> Iterator[Finding]:
    settings = context.settings
    try:
        plan = plan_from(settings, cpu=settings.cpu)
        budget = make_budget(plan, lambda model: model_config(model, context.hub_cache), context.hardware)
    except ValueError as error:
        yield Finding("memory", "failure", str(error), "", "correct it in .env", True)
        return
    except QmdError as error:
        yield Finding("memory", "warning", f"the memory plan cannot be computed: {error.message}", "", error.fix)
        return
    running = [name for name, container in context.containers.items() if container.running] if not context.engine_error else []
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
