"""The phases of a run, one after the other, and everything that came back. A closed loop: who is answered sends the next request."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from qmdctl.bench.client import Answer, Client
from qmdctl.bench.plan import WARM_SHARE, Estimate, Phase, fitting, phases, shares
from qmdctl.bench.workload import Kind, Request, Requests, Workload

SMALL = 2  # texts of the requests that find out how fast the machine is


class Observer(Protocol):
    """Is told how far the run is; see progress.py."""

    def begin(self, title: str) -> None: ...
    def step(self, text: str) -> None: ...


@dataclass(frozen=True)
class Limits:
    """`seconds` for the whole run, `searches` for each agent in each phase, `batches` for each client where nobody searches."""

    seconds: float = 120.0
    searches: int = 20
    batches: int = 50
    agents: tuple[int, ...] = (1, 5)


@dataclass(frozen=True)
class Search:
    """A search whose links all answered: its seconds from the first byte to the last, with what the client does between."""

    seconds: float
    links: tuple[Answer, ...]


@dataclass
class PhaseRun:
    """What came back in one phase. `cut` are requests that were in flight when it ended; `index_seconds` until the last whole batch."""

    phase: Phase
    seconds: float = 0.0
    searches: list[Search] = field(default_factory=list)
    batches: list[Answer] = field(default_factory=list)
    index_seconds: float = 0.0
    failed_searches: int = 0
    failures: list[Answer] = field(default_factory=list)
    cut: int = 0
    cut_searches: int = 0


@dataclass
class Run:
    """Grows as the run goes on, so that what was measured is there when it is interrupted."""

    workload: Workload
    limits: Limits
    done: list[PhaseRun] = field(default_factory=list)
    warming: list[Answer] = field(default_factory=list)
    shortened: list[str] = field(default_factory=list)
    seconds: float = 0.0
    interrupted: bool = False

    @property
    def measured(self) -> bool:
        return any(run.searches or run.batches for run in self.done)


class Load:
    """Sends the requests. `generation` is None where searches have no expansion."""

    def __init__(self, run: Run, requests: Requests, embed: Client, generation: Client | None, observer: Observer) -> None:
        self.run, self.requests, self.embed, self.generation, self.observer = run, requests, embed, generation, observer
        self._started = time.perf_counter()

    async def all(self) -> None:
        """Warm up, then each phase; what does not fit into the time is left out with a sentence. Ends within `limits.seconds`."""
        self._started = time.perf_counter()
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.run.limits.seconds):
                    estimate = await self._warm_up()
                    await self._phases(estimate)
        except asyncio.CancelledError:
            self.run.interrupted = True
            raise
        finally:
            self.run.seconds = time.perf_counter() - self._started
            self._said_cut()
            for client in (self.embed, self.generation):
                if client is not None:
                    await client.close()

    @property
    def left(self) -> float:
        return self.run.limits.seconds - (time.perf_counter() - self._started)

    async def _warm_up(self) -> Estimate:
        """Small requests, from which follows how long whole ones take; and whole ones, where that is not long."""
        self.observer.begin("warm-up")
        planned = phases(self.run.limits.agents)
        estimate = await self._small()
        self.run.workload, self.run.shortened = fitting(self.run.workload, estimate, planned, self.left)
        self.requests.workload = self.run.workload
        workload = self.run.workload
        if estimate.search(workload) + estimate.batch(workload) > WARM_SHARE * self.run.limits.seconds:
            return estimate
        for _ in range(2):  # the first whole ones may be slower than those that follow: memory is taken for them
            batch = await self._warm(self.embed.post(self.requests.indexing()))
            rerank = await self._warm(self.embed.post(self.requests.rerank(self.requests.query())))
            if not (batch.ok and rerank.ok):
                return estimate
        return Estimate(estimate.expansion, batch.seconds / workload.batch, rerank.seconds / workload.candidates, estimate.short)

    async def _small(self) -> Estimate:
        query, requests = self.requests.query(), self.requests
        expanded = 0.0
        if self.generation is not None:
            expanded = (await self._warm(self.generation.post(requests.expansion(query)))).seconds
        short = await self._warm(self.embed.post(requests.embedding(query, "")))
        batch = await self._warm(self.embed.post(requests.indexing(SMALL)))
        rerank = await self._warm(self.embed.post(requests.rerank(query, SMALL)))
        return Estimate(expanded, batch.seconds / SMALL, rerank.seconds / SMALL, short.seconds)

    async def _warm(self, sending: Awaitable[Answer]) -> Answer:
        answer = await sending
        self.run.warming.append(answer)
        self.observer.step(answer.kind)
        return answer

    async def _phases(self, estimate: Estimate) -> None:
        planned = phases(self.run.limits.agents)
        for number, phase in enumerate(planned):
            seconds, fits = shares(planned[number:], estimate, self.run.workload, self.left)
            if not fits:
                need = estimate.round(phase, self.run.workload)
                self.run.shortened.append(
                    f"{phase.title}: left out, one round takes about {need:.0f} s and {max(self.left, 0):.0f} s are left"
                )
                continue
            self.observer.begin(phase.title)
            run = PhaseRun(phase)
            self.run.done.append(run)
            started = time.perf_counter()
            try:
                await self._phase(run, started + seconds)
            finally:
                run.seconds = time.perf_counter() - started
            estimate = _learned(estimate, run)

    def _said_cut(self) -> None:
        """Searches that the end of the time cut are the slower ones: what is left looks better than it was."""
        for run in self.run.done:
            if run.cut_searches and not self.run.interrupted:
                under_way = f"{run.cut_searches} search{'es' if run.cut_searches > 1 else ''} still under way"
                self.run.shortened.append(f"{run.phase.title}: the time was over with {under_way}; those are not in the figures")

    async def _phase(self, run: PhaseRun, end: float) -> None:
        agents = range(run.phase.agents)
        if run.phase.name == "indexing":
            await _together(self._index(run, end, self.run.limits.batches) for _ in agents)
            return
        indexer = None
        if run.phase.name == "searches under indexing":
            indexer = asyncio.create_task(self._index(run, float("inf"), 0))
            await asyncio.sleep(0)  # its first request is on its way before the first search
        try:
            await _together(self._search_on(run, end) for _ in agents)
        finally:
            if indexer is not None:
                indexer.cancel()
                await asyncio.gather(indexer, return_exceptions=True)

    async def _search_on(self, run: PhaseRun, end: float) -> None:
        """One search after the other; none is begun that would end after `end`, but one is begun in any case."""
        taken = 0.0
        for number in range(self.run.limits.searches):
            started = time.perf_counter()
            if number and started + taken > end:
                return
            await self._search(run)
            taken = time.perf_counter() - started

    async def _search(self, run: PhaseRun) -> None:
        try:
            await self._links(run)
        except asyncio.CancelledError:
            run.cut_searches += 1
            raise

    async def _links(self, run: PhaseRun) -> None:
        started, query, links, expanded = time.perf_counter(), self.requests.query(), [], ""
        if self.generation is not None:
            answer = await self._send(run, self.generation, self.requests.expansion(query))
            links.append(answer)
            expanded = answer.text
        # As a client does: without an expansion it searches on.
        for request in (self.requests.embedding(query, expanded), self.requests.rerank(query)):
            links.append(await self._send(run, self.embed, request))
        failed = [link for link in links if not link.ok]
        if failed:
            run.failed_searches += 1
        else:
            run.searches.append(Search(time.perf_counter() - started, tuple(links)))
        self.observer.step(f"{len(run.searches)} searches")
        if failed:
            await asyncio.sleep(max(link.retry_seconds for link in failed))

    async def _index(self, run: PhaseRun, end: float, most: int) -> None:
        """One batch after the other; most 0: without a limit."""
        began, number, taken = time.perf_counter(), 0, 0.0
        while number == 0 or (time.perf_counter() + taken <= end and (not most or number < most)):
            answer = await self._send(run, self.embed, self.requests.indexing())
            taken, number = answer.seconds, number + 1
            if answer.ok:
                run.batches.append(answer)
                run.index_seconds = max(run.index_seconds, answer.ended - began)
                if run.phase.name == "indexing":
                    self.observer.step(f"{sum(batch.texts for batch in run.batches)} chunks")
            else:
                await asyncio.sleep(answer.retry_seconds)

    async def _send(self, run: PhaseRun, client: Client, request: Request) -> Answer:
        try:
            answer = await client.post(request)
        except asyncio.CancelledError:
            run.cut += 1
            raise
        if not answer.ok:
            run.failures.append(answer)
        return answer


def _learned(estimate: Estimate, run: PhaseRun) -> Estimate:
    """The estimate for what follows, from what a phase with one agent took."""
    if run.phase.agents != 1 or run.phase.name == "searches under indexing":
        return estimate

    def mean(kind: Kind, answers: list[Answer], otherwise: float, each: bool) -> float:
        of_kind = [answer.seconds / (answer.texts if each else 1) for answer in answers if answer.kind == kind]
        return sum(of_kind) / len(of_kind) if of_kind else otherwise

    links = [link for search in run.searches for link in search.links]
    return Estimate(
        mean("expansion", links, estimate.expansion, False),
        mean("indexing", run.batches, estimate.embedded_text, True),
        mean("rerank", links, estimate.candidate, True),
        mean("embedding", links, estimate.short, False),
    )


async def _together(tasks: Iterable[Coroutine[Any, Any, None]]) -> None:
    async with asyncio.TaskGroup() as group:
        for task in tasks:
            group.create_task(task)
