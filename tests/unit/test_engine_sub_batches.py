"""How a micro-batch is cut for padded computing."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from embed_service.engine.sub_batches import Limits, plan


@given(
    st.lists(st.integers(1, 9_000), max_size=80),
    st.builds(Limits, rows=st.integers(1, 64), tokens=st.integers(1, 20_000), padding=st.floats(0, 1)),
)
def test_every_sequence_once_within_the_limits(lengths: list[int], limits: Limits) -> None:
    batches = plan(np.array(lengths, np.int32), limits)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        sizes = [lengths[index] for index in batch]
        positions = max(sizes) * len(sizes)
        assert len(batch) == 1 or (len(batch) <= limits.rows and positions <= limits.tokens)
        assert positions - sum(sizes) <= limits.padding * positions


def test_like_lengths_share_a_batch() -> None:
    limits = Limits(rows=8, tokens=2_048, padding=0.1)
    assert plan(np.array([10, 500, 11, 490, 10], np.int32), limits) == [[1, 3], [2, 0, 4]]
