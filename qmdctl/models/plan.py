"""What is planned for a memory, and what is wrong with it. Sizes are bytes; GB is 1e9, GiB 2**30."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

GB = 10**9
GIB = 1 << 30
Memory = Literal["gpu", "unified", "cpu"]

# Left to the system. On unified memory an overcommit does not fail but hangs the host (vLLM#46307), so more is left there.
RESERVE: dict[Memory, int] = {"gpu": 300_000_000, "unified": 12 * GIB, "cpu": 2 * GIB}


@dataclass(frozen=True)
class Part:
    """One service's share. `fixed_bytes`: weights, workspace and runtime, which no figure lowers. `detail` says what it is made of."""

    service: str
    bytes: int
    fixed_bytes: int
    detail: str


@dataclass(frozen=True)
class Place:
    """One memory that services share: a card, or the machine's own. `available_bytes` None where nothing tells it."""

    name: str
    memory: Memory
    total_bytes: int
    available_bytes: int | None
    parts: tuple[Part, ...]

    @property
    def reserve_bytes(self) -> int:
        return RESERVE[self.memory]

    @property
    def planned_bytes(self) -> int:
        return sum(part.bytes for part in self.parts) + self.reserve_bytes

    @property
    def fits(self) -> bool:
        return self.available_bytes is None or self.planned_bytes <= self.available_bytes

    def sentence(self) -> str:
        """Planned: embed 18.1 + vllm 16.2 + reserve 12.0 = 46.3 GB; available on … 31.0 GB."""
        sums = " + ".join(f"{part.service} {part.bytes / GB:.1f}" for part in self.parts)
        there = "unknown" if self.available_bytes is None else f"{self.available_bytes / GB:.1f} GB"
        return (
            f"Planned: {sums} + reserve {self.reserve_bytes / GB:.1f} = {self.planned_bytes / GB:.1f} GB; available on {self.name}: {there}"
        )


@dataclass(frozen=True)
class Problem:
    """`setting` is the key to change."""

    setting: str
    message: str
    fix: str


@dataclass(frozen=True)
class Budget:
    places: tuple[Place, ...]
    problems: tuple[Problem, ...] = field(default=())


@dataclass(frozen=True)
class Plan:
    """The settings that memory depends on, as they are in force; `configs` gives a model's config.json. None: the service does not run."""

    embed_model: str | None
    rerank_model: str | None
    generate_model: str | None
    cpu: bool = False
    dtype: str = "auto"
    generate_dtype: str = "auto"
    embed_memory_gb: float | None = None
    utilization: float = 0.2
    kv_cache_gb: float | None = None
    max_model_len: int = 4096
    max_num_seqs: int = 16
    max_batch_tokens: int = 16_384
    embed_gpu: str = "0"
    generate_gpu: str = "0"
    generate_ranks: int = 1  # devices that share the generation model; one of them is planned here
