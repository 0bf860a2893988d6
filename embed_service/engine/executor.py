"""What computes a micro-batch, behind one interface."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from embed_service.engine.sequences import Sequences
from embed_service.models.spec import Role


@dataclass
class Result:
    """`rows` float32 [n, dimensions] unit vectors (embed) or [n, 1] logits (rerank); a failed row is NaN and has its index in `failed`."""

    rows: NDArray[np.float32]
    computed_tokens: int  # real tokens, each once
    padded_tokens: int  # positions computed, padding included
    oom_splits: int = 0
    failed: dict[int, str] = field(default_factory=dict)  # index → sentence; for want of memory


@dataclass(frozen=True)
class Prepared:
    """A micro-batch that is ready to be computed; an executor's own class may hold its tensors on the device."""

    role: Role
    sequences: Sequences


class Executor(Protocol):
    """Owns the loaded models of both roles."""

    name: str  # "packed", "sentence-transformers", …
    weights_bytes: int  # of all loaded models

    @property
    def shares_prefixes(self) -> bool:
        """Whether `Sequences.prefix` is computed once, or with every sequence."""
        ...

    def prepare(self, role: Role, sequences: Sequences) -> Prepared:
        """Do what can be done while another micro-batch computes. May be called in any thread; an error of it shows in `run`."""
        ...

    def run(self, prepared: Prepared) -> Result:
        """Compute one micro-batch. Out of memory is handled inside (split and retry); any other exception ends the engine."""
        ...


class ByRole:
    """Each role on an executor of its own, under one name."""

    def __init__(self, executors: Mapping[Role, Executor], name: str) -> None:
        self._executors = executors
        self.name = name
        self.weights_bytes = sum({id(executor): executor.weights_bytes for executor in executors.values()}.values())

    @property
    def shares_prefixes(self) -> bool:
        return any(executor.shares_prefixes for executor in self._executors.values())

    def prepare(self, role: Role, sequences: Sequences) -> Prepared:
        return self._executors[role].prepare(role, sequences)

    def run(self, prepared: Prepared) -> Result:
        return self._executors[prepared.role].run(prepared)
