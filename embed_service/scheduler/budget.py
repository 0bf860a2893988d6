"""How many tokens a micro-batch may have, so that it takes about TARGET_BATCH_MS."""

from __future__ import annotations

FLOOR_TOKENS = 256
SMOOTHING = 0.3  # weight of the newest measurement
RECOVERY = 1.05  # growth of the memory cap after each micro-batch that ran at it


class TokenBudget:
    """Token budget of one role: tokens per second as measured, under a cap that running out of memory halves."""

    def __init__(self, max_tokens: int, target_seconds: float) -> None:
        self._max_tokens = max_tokens
        self._cap = float(max_tokens)
        self._target_seconds = target_seconds
        self._rate: float | None = None  # tokens/s

    @property
    def tokens(self) -> int:
        """Most real tokens of the next micro-batch. Before the first measurement a cautious eighth of the maximum."""
        wanted = self._max_tokens / 8 if self._rate is None else self._rate * self._target_seconds
        return int(max(FLOOR_TOKENS, min(wanted, self._cap)))

    def observe(self, tokens: int, seconds: float) -> None:
        """A micro-batch of `tokens` took `seconds`. Small ones say little of the rate and are left out."""
        if seconds <= 0 or tokens < FLOOR_TOKENS // 2:
            return
        rate = tokens / seconds
        self._rate = rate if self._rate is None else (1 - SMOOTHING) * self._rate + SMOOTHING * rate
        if tokens >= self._cap / 2:
            self._cap = min(self._max_tokens, self._cap * RECOVERY)

    def out_of_memory(self, tokens: int) -> None:
        """A micro-batch of `tokens` did not fit: stay under half of it until it is regained step by step."""
        self._cap = max(FLOOR_TOKENS, min(self._cap, tokens) / 2)
