"""Canaries: sequences with a known answer, which tell whether an engine computes what it should."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from embed_service.engine.sequences import Sequences
from embed_service.models.spec import Role
from embed_service.scheduler.work import Float32, Lane

CANARY_TOKENS = 16
# Far above bf16's noise on one and the same input, far below another model's answer. Of an answer above 1 it is a part: one step of
# bf16 between 8 and 16, where a reranker's logits lie, is 0.0625.
CANARY_TOLERANCE = 0.05


@dataclass(eq=False)
class Canary:
    """A fixed sequence with a known answer."""

    id: int
    role: Role
    sequences: Sequences
    lane: Lane = "interactive"

    @classmethod
    def of(cls, number: int, role: Role, vocabulary: int) -> Canary:
        """Any valid ids do: the answer is compared with the same ids' answer at start."""
        ids = (np.arange(CANARY_TOKENS) * 7919 + 101) % vocabulary
        return cls(number, role, Sequences.of([ids.astype(np.int32)]))


class Expectations:
    """The first answers are the measure of all later ones, whichever engine gives them, as long as it loads the same weights on the same
    kind of device in the same precision. Others (DEVICE=auto after the GPU is lost, another kind of box) have answers of their own."""

    def __init__(self) -> None:
        self._rows: dict[object, Float32] = {}

    def met(self, computed_on: object, role: Role, rows: Float32) -> bool:
        """Whether a canary's rows are as they should be. `computed_on` (hashable): models, device, precision and attention."""
        if not np.isfinite(rows).all():
            return False
        expected = self._rows.setdefault((computed_on, role), rows.copy())
        return rows.shape == expected.shape and bool((np.abs(rows - expected) <= CANARY_TOLERANCE * np.maximum(1, np.abs(expected))).all())
