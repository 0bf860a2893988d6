"""What is known of an engine, and of several together; /health is made from it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

STALL_SECONDS = 60  # a download without a new byte for so long is called stalled
PHASES = ("starting", "connecting", "placing", "resolving", "downloading", "loading", "warming", "canary", "ready")  # in their order


@dataclass
class EngineState:
    """What is known of one engine now."""

    phase: str = "starting"
    detail: str = ""  # why a phase lasts, where that is known
    done_bytes: int = 0
    total_bytes: int = 0
    progressed: float = field(default_factory=time.monotonic)
    error: dict[str, Any] | None = None  # {code, message, retryable}
    device: str | None = None
    dtype: str | None = None
    cuda_available: bool = False
    executor: str | None = None
    attention: str | None = None
    shares_prefixes: bool = False
    restarts: int = 0
    last_end: str | None = None
    ended: float = 0.0  # time.monotonic() of `last_end`
    ready_at: float | None = None  # seconds since 1970
    memory: dict[str, int] = field(default_factory=dict)  # see engine/memory.py; the last that was said

    @property
    def interrupted(self) -> bool:
        """The network broke in the middle of a download, which goes on by itself, over as many engines as it takes."""
        return self.error is not None and self.error["code"] == "offline" and self.total_bytes > 0

    @property
    def stalled_seconds(self) -> float:
        """Since the last new byte of a download; 0 in other phases."""
        return time.monotonic() - self.progressed if self.phase == "downloading" or self.interrupted else 0.0

    @property
    def stalled(self) -> bool:
        return self.stalled_seconds > STALL_SECONDS


def together(states: Sequence[EngineState]) -> EngineState:
    """Several engines as one: as far as the most advanced of them, in error where all are."""
    if len(states) == 1:
        return states[0]
    working = [state for state in states if state.error is None] or list(states)
    leading = max(working, key=lambda state: PHASES.index(state.phase) if state.phase in PHASES else -1)
    loaded = [state for state in states if state.phase == "ready"] or [leading]
    return EngineState(
        phase=leading.phase,
        detail=leading.detail,
        done_bytes=leading.done_bytes,
        total_bytes=leading.total_bytes,
        progressed=leading.progressed,
        error=leading.error,
        device=_all_of(state.device for state in loaded),
        dtype=_all_of(state.dtype for state in loaded),
        cuda_available=any(state.cuda_available for state in loaded),
        executor=_all_of(state.executor for state in loaded),
        attention=_all_of(state.attention for state in loaded),
        shares_prefixes=all(state.shares_prefixes for state in loaded),
        restarts=sum(state.restarts for state in states),
        last_end=max(states, key=lambda state: state.ended).last_end,
        ready_at=min((state.ready_at for state in loaded if state.ready_at is not None), default=None),
        # Of several boxes there is no one memory to speak of.
    )


def _all_of(values: Iterable[str | None]) -> str | None:
    """Of boxes that differ, what there is: "cpu, cuda"."""
    return ", ".join(sorted({value for value in values if value})) or None
