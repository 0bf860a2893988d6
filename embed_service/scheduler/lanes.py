"""The queue: two lanes, callers in turn within a lane, micro-batches of one role."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable

from embed_service.models.spec import Role
from embed_service.scheduler.work import Item, Job, Lane

ALONE_AFTER_DEATHS = 2  # a sequence that was computing at so many deaths of an engine goes alone


class _LaneQueue:
    """Jobs of one lane. The caller whose turn it is stands first."""

    def __init__(self) -> None:
        self.callers: OrderedDict[str, deque[Job]] = OrderedDict()
        self.served = 0.0  # when it last gave work, or became non-empty

    def __bool__(self) -> bool:
        return bool(self.callers)

    def put(self, job: Job, *, first: bool = False) -> None:
        if not self.callers:
            self.served = time.monotonic()
        jobs = self.callers.setdefault(job.caller, deque())
        if first:
            if job in jobs:
                jobs.remove(job)
            jobs.appendleft(job)
            self.callers.move_to_end(job.caller, last=False)
        else:
            jobs.append(job)

    def drop(self, job: Job) -> None:
        jobs = self.callers.get(job.caller)
        if jobs and job in jobs:
            jobs.remove(job)
            if not jobs:
                del self.callers[job.caller]

    def next_role(self) -> Role:
        return next(iter(self.callers.values()))[0].role

    def take(self, role: Role, budget: int, most: int) -> list[Item]:
        """Items of `role`, one from each caller in turn, until `budget` tokens or `most` items. At least one item."""
        taken: list[Item] = []
        tokens = 0
        skipped: set[str] = set()
        while self.callers and len(taken) < most:
            caller = next((c for c in self.callers if c not in skipped), None)
            if caller is None:
                break
            job = next((j for j in self.callers[caller] if j.role == role), None)
            if job is None:
                skipped.add(caller)
                continue
            index = job.pending[0]
            item = Item(job, index)
            alone = job.deaths.get(index, 0) >= ALONE_AFTER_DEATHS
            if taken and (alone or tokens + item.length > budget):
                break
            job.pending.popleft()
            taken.append(item)
            tokens += item.length
            self.callers.move_to_end(caller)
            if not job.pending:
                self.drop(job)
            if alone:
                break
        self.served = time.monotonic()
        return taken


class Lanes:
    """All that waits. `queued_tokens` and the sequence counts per lane are kept as it changes."""

    def __init__(self, bulk_aging_seconds: float) -> None:
        self._aging = bulk_aging_seconds
        self._lanes: dict[Lane, _LaneQueue] = {"interactive": _LaneQueue(), "bulk": _LaneQueue()}
        self.queued_tokens = 0
        self.queued_sequences: dict[Lane, int] = {"interactive": 0, "bulk": 0}

    def __bool__(self) -> bool:
        return any(self._lanes.values())

    def put(self, job: Job) -> None:
        self._count(job, job.pending, +1)
        self._lanes[job.lane].put(job)

    def put_back(self, items: Iterable[Item]) -> None:
        """Items whose engine ended go to the head of their lane, in their old order; those of finished jobs are forgotten."""
        for item in reversed(list(items)):
            if item.job.done.done():
                continue
            item.job.pending.appendleft(item.index)
            self._count(item.job, (item.index,), +1)
            self._lanes[item.job.lane].put(item.job, first=True)

    def drop(self, job: Job) -> None:
        """Forget what still waits of a job."""
        self._count(job, job.pending, -1)
        self._lanes[job.lane].drop(job)
        job.pending.clear()

    def jobs(self) -> list[Job]:
        return [job for lane in self._lanes.values() for jobs in lane.callers.values() for job in jobs]

    def take(self, budget: Callable[[Role], int], most: int) -> tuple[Role, list[Item]] | None:
        """The next micro-batch: interactive first, but bulk that was passed over for `bulk_aging_seconds` goes before it once."""
        interactive, bulk = self._lanes["interactive"], self._lanes["bulk"]
        if not interactive and not bulk:
            return None
        aged = bool(bulk) and time.monotonic() - bulk.served > self._aging
        lane = bulk if bulk and (aged or not interactive) else interactive
        role = lane.next_role()
        items = lane.take(role, budget(role), most)
        for item in items:
            self._count(item.job, (item.index,), -1)
        return role, items

    def _count(self, job: Job, indices: Iterable[int], sign: int) -> None:
        lengths = [len(job.sequences[i]) for i in indices]
        self.queued_tokens += sign * sum(lengths)
        self.queued_sequences[job.lane] += sign * len(lengths)
