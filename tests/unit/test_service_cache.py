"""When the service asks the result cache and when it fills it, on an engine that is FAKE: it answers each id list with its sum."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embed_service.errors import InternalError, Unavailable
from embed_service.models.spec import ModelSpec
from embed_service.scheduler.service import ServedModel, Service
from embed_service.scheduler.work import Job
from embed_service.settings import Settings

Act = Callable[[Service, "Engine"], Awaitable[None]]


class Engine:
    """FAKE: takes jobs from the queue as the dispatcher does. `jobs` is what reached it; `before` is called with each job first."""

    def __init__(self, service: Service) -> None:
        self.jobs: list[Job] = []
        self.before: Callable[[Job], None] = lambda job: None
        lanes = service._lanes

        def pump() -> None:
            for job in lanes.jobs():
                lanes.drop(job)
                self.jobs.append(job)
                self.before(job)
                if not job.done.done():
                    job.rows = np.array([[s.sum()] for s in job.sequences], np.float32)
                    job.compute_seconds = 1.0
                    job.done.set_result(job.rows)

        service._supervisor.dispatcher.pump = pump  # type: ignore[method-assign]

    @property
    def computed(self) -> list[list[list[int]]]:
        return [[s.tolist() for s in job.sequences] for job in self.jobs]


def served(**changes: Any) -> ServedModel:
    fields: dict[str, Any] = {
        "role": "rerank", "id": "judge", "revision": "r", "path": "/models/judge", "architecture": "bert", "kind": "classifier",
        "max_tokens": 64, "vocabulary": 100,
    }  # fmt: skip
    return ServedModel(ModelSpec(**{**fields, **changes}), None)  # type: ignore[arg-type]


def run(act: Act, **settings: Any) -> None:
    async def main() -> None:
        service = Service(Settings(**settings))
        service._served["rerank"] = served()
        service._supervisor.ready.set()
        service._supervisor.state.shares_prefixes = True
        await act(service, Engine(service))

    asyncio.run(main())


async def ask(service: Service, *sequences: list[int], prefix: list[int] | None = None, **options: Any) -> list[float]:
    ids = [np.array(s, np.int32) for s in sequences]
    computed = await service.compute("rerank", ids, prefix=prefix, **{"lane": "interactive", "caller": "c", **options})
    return [float(value) for value in computed.rows[:, 0]]


def test_only_what_is_not_known_is_computed_with_its_prefix() -> None:
    async def act(service: Service, engine: Engine) -> None:
        assert await ask(service, [1, 2], [1, 3], prefix=[1, 1]) == [3, 4]
        assert await ask(service, [1, 4], [1, 3], [1, 5], [1, 2], prefix=[1, 1, 1, 1]) == [5, 4, 6, 3]
        assert engine.computed == [[[1, 2], [1, 3]], [[1, 4], [1, 5]]]
        assert engine.jobs[1].prefix == [1, 1]

    run(act)


def test_what_is_known_costs_no_time_in_the_engine() -> None:
    async def act(service: Service, engine: Engine) -> None:
        ids = [np.array([1, 2], np.int32)]
        first = await service.compute("rerank", ids, lane="interactive", caller="c")
        again = await service.compute("rerank", ids, lane="interactive", caller="c")
        assert (first.compute_seconds, again.compute_seconds, again.queue_seconds) == (1, 0, 0)
        assert again.rows.dtype == np.float32 and again.rows.tolist() == first.rows.tolist() == [[3]]

    run(act)


def test_bulk_neither_fills_nor_reads() -> None:
    async def act(service: Service, engine: Engine) -> None:
        await ask(service, [1], lane="bulk")
        assert len(service._cache) == 0
        await ask(service, [1])
        await ask(service, [1], lane="bulk")
        assert len(engine.jobs) == 3

    run(act)


@pytest.mark.parametrize(("caching", "known_after"), [("refresh", True), ("off", False)])
def test_a_fresh_answer_is_computed(caching: str, known_after: bool) -> None:
    async def act(service: Service, engine: Engine) -> None:
        await ask(service, [1], caching=caching)
        await ask(service, [1], caching=caching)
        assert len(engine.jobs) == 2
        await ask(service, [1])
        assert len(engine.jobs) == 2 + (not known_after)

    run(act)


def test_zero_turns_it_off() -> None:
    async def act(service: Service, engine: Engine) -> None:
        for _ in range(2):
            await ask(service, [1])
        assert len(engine.jobs) == 2
        assert len(service._cache) == 0

    run(act, result_cache_mb=0)


def test_a_job_that_failed_or_was_cancelled_leaves_nothing() -> None:
    async def act(service: Service, engine: Engine) -> None:
        engine.before = lambda job: job.done.set_exception(InternalError("no number", code="computation_failed"))
        with pytest.raises(InternalError):
            await ask(service, [1])
        engine.before = lambda job: job.done.cancel() and None
        with pytest.raises(asyncio.CancelledError):
            await ask(service, [1])
        assert len(service._cache) == 0

    run(act)


@pytest.mark.parametrize(
    "change",
    [
        lambda service: setattr(service._supervisor.state, "dtype", "bfloat16"),
        lambda service: setattr(service._supervisor.state, "device", "cuda:0"),
        lambda service: setattr(service._supervisor.state, "restarts", 1),
        lambda service: service._served.update(rerank=served(revision="other")),
        lambda service: service._served.update(rerank=served(max_tokens=32)),
    ],
)
def test_another_engine_model_or_precision_has_answers_of_its_own(change: Callable[[Service], Any]) -> None:
    async def act(service: Service, engine: Engine) -> None:
        await ask(service, [1])
        change(service)
        await ask(service, [1])
        assert len(engine.jobs) == 2
        engine.before = lambda job: setattr(service._supervisor.state, "restarts", 7)  # its engine ended while it waited
        kept = len(service._cache)
        await ask(service, [2])
        assert len(service._cache) == kept

    run(act)


def test_where_the_files_lie_decides_nothing() -> None:
    async def act(service: Service, engine: Engine) -> None:
        await ask(service, [1])
        service._served["rerank"] = served(path="/elsewhere")
        await ask(service, [1])
        assert len(engine.jobs) == 1

    run(act)


def test_ids_of_another_model_are_neither_looked_up_nor_computed() -> None:
    """Its files were replaced while the request was tokenised."""

    async def act(service: Service, engine: Engine) -> None:
        before = service.served("rerank")
        for caching in ("reuse", "off"):
            assert await ask(service, [1], tokenised_by=before, caching=caching) == [1]
        service._served["rerank"] = served(revision="s")
        for caching in ("reuse", "off"):
            with pytest.raises(Unavailable, match="replaced"):
                await ask(service, [1], tokenised_by=before, caching=caching)

    run(act)


def test_nothing_is_taken_from_it_while_the_engine_is_not_ready() -> None:
    async def act(service: Service, engine: Engine) -> None:
        await ask(service, [1])
        service._supervisor.ready.clear()
        await ask(service, [1])
        assert len(engine.jobs) == 2

    run(act)


def test_other_models_clear_it(tmp_path: Path) -> None:
    async def act(service: Service, engine: Engine) -> None:
        await ask(service, [1])
        assert len(service._cache) == 1
        service._on_described({"embed": served(path=str(tmp_path)).spec})
        assert len(service._cache) == 0
        assert service._loading is not None
        await service._loading

    run(act)


def test_a_prefix_that_the_engine_does_not_share_is_not_counted_as_shared() -> None:
    """Else a micro-batch would hold many times the tokens that it may."""

    async def act(service: Service, engine: Engine) -> None:
        service._supervisor.state.shares_prefixes = False
        await ask(service, [1, 2], [1, 3], prefix=[1, 1])
        assert not engine.jobs[0].prefix

    run(act)
