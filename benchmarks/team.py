"""The contestants of a section: started together, taking turns, left out with a reason where one fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TypeVar

import httpx

from benchmarks.results import OURS, Results
from benchmarks.servers import Contestant

T = TypeVar("T")
Say = Callable[[str], None]
FAILURES = (RuntimeError, OSError, httpx.HTTPError, LookupError, ValueError)  # of a process, of its transport, of its answers' form


class Team:
    """Iterates over those that still take part."""

    def __init__(self, members: Sequence[Contestant], where: str, results: Results, say: Say) -> None:
        self._members = list(members)
        self._where, self._results, self._say = where, results, say

    def __iter__(self) -> Iterator[Contestant]:
        return iter(list(self._members))

    def turn(self, member: Contestant, what: str, work: Callable[[], None]) -> None:
        """`work`, if `member` still takes part. A peer that fails is left out from here on; this service's own failure is an error."""
        if member not in self._members:
            return
        self._say(f"{self._where}: {what}, {member.name}")
        try:
            work()
        except FAILURES as error:
            self.leave_out(member, error)

    def reference(self, member: Contestant, ask: Callable[[], T]) -> T | None:
        """What the others are compared with; None where `member` cannot tell, and then nobody is compared."""
        if member not in self._members:
            return None
        try:
            return ask()
        except FAILURES as error:
            self.leave_out(member, error)
            return None

    def leave_out(self, member: Contestant, error: Exception) -> None:
        if member.name == OURS:
            raise RuntimeError(f"{self._where}: {error or repr(error)}") from error
        self._members.remove(member)
        reason = str(error) or repr(error)
        self._results.left_out[f"{member.name}, {self._where}"] = reason
        self._say(f"{self._where}: {member.name} is left out: {reason}")


@contextmanager
def started(members: Sequence[Contestant], where: str, results: Results, say: Say) -> Iterator[Team]:
    """All of them at once, for some take a minute; they end with the block."""
    say(f"{where}: starting {', '.join(member.name for member in members)}")
    # The processes end before the threads that wait for them.
    with ThreadPoolExecutor(max(len(members), 1)) as pool, ExitStack() as stack:
        team = Team(members, where, results, say)
        waits = []
        for member in members:
            try:
                stack.enter_context(member)
                waits.append((member, pool.submit(member.wait_ready)))
            except OSError as error:
                team.leave_out(member, error)
        for member, wait in waits:
            try:
                wait.result()
            except FAILURES as error:
                team.leave_out(member, error)
        yield team
