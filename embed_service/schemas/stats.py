"""What GET /stats tells: the numbers behind the page."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from embed_service.schemas.service import Health

__all__ = ["Stats"]


class ServedFacts(BaseModel):
    model: str
    revision: str = Field(description="Commit of the repository, or a digest of a folder's files.")
    architecture: str
    kind: str = Field(description="embedding, yes_no, classifier or cosine.")
    dimensions: int
    max_tokens: int


class LaneNow(BaseModel):
    queued_sequences: int


class Now(BaseModel):
    in_flight: int = Field(description="Requests that are being answered.")
    queued_tokens: int
    lanes: dict[str, LaneNow] = Field(description="interactive and bulk.")
    token_budget: dict[str, int] = Field(description="Most tokens of the next micro-batch, by role.")


class SearchLatency(BaseModel):
    """Of the interactive requests that were answered within the window."""

    searches: int
    p50: float | None = Field(description="Seconds, of the last 4,096 of them; null where there was none.")
    p95: float | None


class MemoryPart(BaseModel):
    name: Literal["weights", "service", "kv_cache", "vllm", "other", "free"]
    bytes: int


class Memory(BaseModel):
    kind: Literal["card", "unified", "machine"] = Field(description="A GPU's own memory, memory shared with the GPU, or the machine's.")
    total_bytes: int
    parts: list[MemoryPart] = Field(description="They sum up to `total_bytes`.")
    kv_cache_used: float | None = Field(description="Part of vLLM's KV cache that is in use, 0 to 1.")


class Sample(BaseModel):
    """Since the sample before; what waits, at its time."""

    id: int
    time: float = Field(description="Seconds since 1970.")
    texts_per_second: float
    tokens_per_second: float
    searches: int
    search_p50: float | None = Field(description="Seconds.")
    search_p95: float | None
    queued_interactive: int = Field(description="Sequences.")
    queued_bulk: int
    queued_tokens: int


class Window(BaseModel):
    seconds: float
    interval_seconds: float


class Stats(BaseModel):
    health: Health = Field(description="What /health answers, whatever its status.")
    started_at: float = Field(description="Start of the service, in seconds since 1970.")
    ready_since: float | None = Field(description="Since when the models answer; null while they do not.")
    models: dict[str, ServedFacts] = Field(description="embed and rerank, once their files are on disk.")
    generation: bool = Field(description="Whether completions are forwarded (GENERATION_URL).")
    now: Now
    search_seconds: SearchLatency
    memory: Memory | None = Field(
        description="null where the system does not tell, with engines on other boxes, and while the engine of a GPU is not ready."
    )
    window: Window
    samples: list[Sample] = Field(description="Those with an id greater than `after`, oldest first.")
