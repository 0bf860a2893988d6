"""How many tokens a micro-batch may have, so that it takes about TARGET_BATCH_MS.

A device computes few tokens at a time badly: it reads all weights for them, and its matrix products are narrow. So where the target allows
less than EFFICIENT_TOKENS, up to STRETCH times the target is taken.
"""

from __future__ import annotations

FLOOR_TOKENS = 256
EFFICIENT_TOKENS = 1_024
STRETCH = 2.5
SMOOTHING = 0.5  # weight of the newest measurement
GROWTH = 2.0  # most that one measurement can make of the budget
RECOVERY = 1.05  # growth of the memory cap after each micro-batch that ran at it


class TokenBudget:
    """Token budget of one role: as many as were measured to take `target_seconds` (or a little longer, see above), under a cap that running
    out of memory halves.

    It falls at once and regains by steps: after a slow-down the next search waits, after a speed-up nobody does. A small micro-batch is
    mostly overhead and says only that the budget may be larger, never that it should be smaller, unless it took too long itself.
    """

    def __init__(self, max_tokens: int, target_seconds: float) -> None:
        self._max_tokens = max_tokens
        self._cap = float(max_tokens)
        self._target_seconds = target_seconds
        self._wanted = max_tokens / 8  # before the first measurement

    @property
    def tokens(self) -> int:
        """Most tokens of the next micro-batch."""
        stretched = max(self._wanted, min(EFFICIENT_TOKENS, STRETCH * self._wanted))
        return int(max(FLOOR_TOKENS, min(stretched, self._cap)))

    def observe(self, tokens: int, seconds: float) -> None:
        """`tokens` were computed in `seconds`. So few that the budget cannot be that small say nothing."""
        if seconds <= 0 or tokens < FLOOR_TOKENS // 2:
            return
        measured = tokens / seconds * self._target_seconds  # so many would have taken the target
        if measured < self._wanted and seconds > self._target_seconds:
            self._wanted = measured
        elif measured > self._wanted or tokens >= self.tokens / 2:
            self._wanted = min(self._wanted + SMOOTHING * (measured - self._wanted), GROWTH * max(self._wanted, FLOOR_TOKENS))
        self._wanted = min(self._wanted, self._max_tokens)
        if tokens >= self._cap / 2:
            self._cap = min(self._max_tokens, self._cap * RECOVERY)

    def out_of_memory(self, tokens: int) -> None:
        """A micro-batch of `tokens` did not fit: stay under half of it until it is regained step by step."""
        self._cap = max(FLOOR_TOKENS, min(self._cap, tokens) / 2)
