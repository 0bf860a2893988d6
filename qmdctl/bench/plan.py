"""How the time of a run is divided between its phases, and what a slow machine leaves out.

Every phase needs one round: each agent's search, or a batch. What is left beyond the rounds of all phases is shared evenly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from qmdctl.bench.workload import Workload

Name = Literal["searches", "indexing", "searches under indexing"]
NAMES: tuple[Name, ...] = ("searches", "indexing", "searches under indexing")
FIRST_SHARE = 0.6  # of the time that is left: what the phases with the fewest agents may need before the work is made smaller
WARM_SHARE = 0.1  # of the time: a whole search and a whole batch are sent to warm up only where they take less
SIZES = ((32, 40), (16, 20), (8, 10), (4, 5))  # (batch, candidates): whole, then smaller
SHORT_TOKENS = 128  # instead of the client's own limit for an expansion


@dataclass(frozen=True)
class Phase:
    """`agents` are the searches, or clients that index, at the same time. Under indexing one more client indexes."""

    name: Name
    agents: int

    @property
    def title(self) -> str:
        who = "1 agent" if self.agents == 1 else f"{self.agents} agents"
        return f"{self.name}, {who}"


@dataclass(frozen=True)
class Estimate:
    """Seconds: of an expansion, of a text embedded as part of a batch, of a candidate as part of a rerank, of a request with one text."""

    expansion: float
    embedded_text: float
    candidate: float
    short: float = 0.0

    def search(self, workload: Workload) -> float:
        return (self.expansion if workload.expansion else 0.0) + self.short + workload.candidates * self.candidate

    def batch(self, workload: Workload) -> float:
        return workload.batch * self.embedded_text

    def round(self, phase: Phase, workload: Workload) -> float:
        """Of one round of a phase. The device computes one rerank after the other; expansions are generated together."""
        if phase.name == "indexing":
            return phase.agents * self.batch(workload)
        searches = self.search(workload) + (phase.agents - 1) * workload.candidates * self.candidate
        return searches + (self.batch(workload) if phase.name == "searches under indexing" else 0.0)


def phases(agents: tuple[int, ...]) -> list[Phase]:
    """The fewest agents first: their figures are the ones that others are read against."""
    return [Phase(name, number) for number in sorted(set(agents)) for name in NAMES]


def fitting(workload: Workload, estimate: Estimate, planned: list[Phase], seconds: float) -> tuple[Workload, list[str]]:
    """(the largest workload of which the first three phases fit into `seconds`, sentences on what was made smaller)."""
    first, said = planned[: len(NAMES)], []
    if workload.expansion and len(first) * estimate.expansion > FIRST_SHARE / 2 * seconds and workload.max_tokens > SHORT_TOKENS:
        said.append(
            f"expansions end after {SHORT_TOKENS} tokens (a client allows {workload.max_tokens}): one took {estimate.expansion:.0f} s"
        )
        workload = replace(workload, max_tokens=SHORT_TOKENS)
    for batch, candidates in SIZES:
        fit = replace(workload, batch=batch, candidates=candidates)
        if sum(estimate.round(phase, fit) for phase in first) <= FIRST_SHARE * seconds:
            break
    if fit != workload:
        search, whole = estimate.search(workload), estimate.batch(workload)
        said.append(
            f"reranks of {fit.candidates} chunks in place of {workload.candidates}, batches of {fit.batch} in place of {workload.batch}: a "
            f"whole search would take about {search:.0f} s here, a whole batch {whole:.0f} s"
        )
    return fit, said


def shares(left: list[Phase], estimate: Estimate, workload: Workload, seconds: float) -> tuple[float, bool]:
    """(seconds for the first of the phases `left`, whether one round of it fits into what is left at all).

    Phases of which a round no longer fits take no part: what is spare goes to those that are run.
    """
    needs = [estimate.round(phase, workload) for phase in left]
    kept: list[float] = []
    for need in needs:
        if sum(kept) + need <= seconds:
            kept.append(need)
    spare = (seconds - sum(kept)) / max(len(kept), 1)
    return needs[0] + spare, needs[0] <= seconds
