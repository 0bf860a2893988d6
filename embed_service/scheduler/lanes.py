"""The queue: two lanes, callers in turn within a lane, micro-batches of one role."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from embed_service.models.spec import Role
from embed_service.scheduler.work import LANES, Cost, Item, Job, Lane

ALONE_AFTER_DEATHS = 2  # a sequence that was computing at so many deaths of an engine goes alone


class _LaneQueue:
    """Jobs of one lane, by caller. It is the turn of the caller who has been served least.

    "Served" is counted in tokens, by start-time fair queueing (Goyal, Vin and Cheng, 1996): a caller who comes, or comes back, starts
    level with the one served last, so that nobody is owed anything for the time in which he asked for nothing, and nobody waits for the
    rest of another's long job.
    """

    def __init__(self) -> None:
        self.callers: dict[str, deque[Job]] = {}  # in order of arrival, which decides between equals
        self._served: dict[str, int] = {}  # tokens; of callers who wait, and of others while they are ahead
        self._level = 0  # what the caller served last had had before

    def __bool__(self) -> bool:
        return bool(self.callers)

    def put(self, job: Job) -> None:
        if not self.callers:
            self._served.clear()
            self._level = 0
        if job.caller not in self.callers:
            self.callers[job.caller] = deque()
            self._served[job.caller] = max(self._level, self._served.get(job.caller, 0))
        self.callers[job.caller].append(job)

    def put_back(self, item: Item) -> None:
        """To the head of its caller's jobs, and its caller to where he stood before he was served."""
        job, caller = item.job, item.job.caller
        jobs = self.callers.pop(caller, deque())
        if job in jobs:
            jobs.remove(job)
        jobs.appendleft(job)
        self.callers = {caller: jobs, **self.callers}
        self._served[caller] = self._served.get(caller, self._level) - item.length

    def drop(self, job: Job) -> None:
        jobs = self.callers.get(job.caller)
        if jobs and job in jobs:
            jobs.remove(job)
            if not jobs:
                del self.callers[job.caller]

    def take(self, budget: Callable[[Role], int], most: int) -> tuple[Role, list[Item]]:
        """Items of one role, from each caller in turn, until `budget(role)` tokens or `most` items. At least one item."""
        role = self.callers[self._turn(self.callers)][0].role
        tokens = budget(role)
        taken: list[Item] = []
        cost = Cost()
        first = {caller: job for caller in self.callers if (job := self._first(caller, role))}
        while first and len(taken) < most:
            caller = self._turn(first)
            job = first[caller]
            item = Item(job, job.pending[0])
            alone = job.deaths.get(item.index, 0) >= ALONE_AFTER_DEATHS
            if taken and (alone or cost.tokens + cost.of(item) > tokens):
                break
            cost.add(item)
            taken.append(item)
            job.pending.popleft()
            self._level = max(self._level, self._served[caller])
            self._served[caller] += item.length
            if not job.pending:
                self.drop(job)
                del first[caller]
                if following := self._first(caller, role):
                    first[caller] = following
            if alone:
                break
        self._served = {c: served for c, served in self._served.items() if c in self.callers or served > self._level}
        return role, taken

    def _first(self, caller: str, role: Role) -> Job | None:
        return next((job for job in self.callers.get(caller, ()) if job.role == role), None)

    def _turn(self, callers: Iterable[str]) -> str:
        return min(callers, key=self._served.__getitem__)


class Lanes:
    """All that waits. `queued_tokens` and the sequence counts per lane are kept as it changes."""

    def __init__(self) -> None:
        self._lanes: dict[Lane, _LaneQueue] = {lane: _LaneQueue() for lane in LANES}
        self.queued_tokens = 0
        self.queued_sequences: dict[Lane, int] = dict.fromkeys(LANES, 0)

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
            self._lanes[item.job.lane].put_back(item)

    def drop(self, job: Job) -> None:
        """Forget what still waits of a job."""
        self._count(job, job.pending, -1)
        self._lanes[job.lane].drop(job)
        job.pending.clear()

    def jobs(self) -> list[Job]:
        return [job for lane in self._lanes.values() for jobs in lane.callers.values() for job in jobs]

    def take(self, lane: Lane, budget: Callable[[Role], int], most: int) -> tuple[Role, list[Item]] | None:
        """The next micro-batch of a lane, or None where nothing waits there. `budget(role)`: most tokens; `most`: most sequences."""
        if not self._lanes[lane]:
            return None
        role, items = self._lanes[lane].take(budget, most)
        for item in items:
            self._count(item.job, (item.index,), -1)
        return role, items

    def _count(self, job: Job, indices: Iterable[int], sign: int) -> None:
        lengths = [len(job.sequences[i]) for i in indices]
        self.queued_tokens += sign * sum(lengths)
        self.queued_sequences[job.lane] += sign * len(lengths)
