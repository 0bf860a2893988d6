"""How a micro-batch is cut for padded computing: sequences of like length together, so that little padding is computed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from embed_service.engine.sequences import Int32


@dataclass(frozen=True)
class Limits:
    """Of one sub-batch. `tokens`: positions with padding. `padding`: the part of them that may be padding."""

    rows: int
    tokens: int
    padding: float


def plan(lengths: Int32, limits: Limits) -> list[list[int]]:
    """Indices of each sub-batch, longest sequences first. A sequence longer than `limits.tokens` stands alone."""
    batches: list[list[int]] = []
    real = 0
    for index in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[index])
        if batches:
            batch = batches[-1]
            positions = int(lengths[batch[0]]) * (len(batch) + 1)
            if len(batch) < limits.rows and positions <= limits.tokens and positions - real - length <= limits.padding * positions:
                batch.append(index)
                real += length
                continue
        batches.append([index])
        real = length
    return batches
