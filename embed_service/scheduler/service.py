"""The door through which routes reach the models: readiness, tokenisers, computing, health."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embed_service.models.spec import ModelSpec, Role
from embed_service.scheduler.work import Job, Lane
from embed_service.settings import Settings

if TYPE_CHECKING:
    from embed_service.engine.sequences import Int32
    from embed_service.text.tokens import TextTokenizer


@dataclass(frozen=True)
class ServedModel:
    spec: ModelSpec
    tokenizer: TextTokenizer


class Service:
    """Created once by `app.create_app`; lives on `app.state.service`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    async def start(self) -> None:
        """Spawn the engine and begin supervising. Returns at once."""

    async def stop(self) -> None:
        """Stop the engine."""

    async def wait_ready(self, role: Role) -> ServedModel:
        """The model of `role`, waiting up to LOAD_WAIT_SECONDS. Raises Unavailable (503) with the cause."""
        raise NotImplementedError

    def served(self, role: Role) -> ServedModel | None:
        """The model if it is described and its tokeniser loaded, without waiting."""
        raise NotImplementedError

    async def compute(self, role: Role, sequences: list[Int32], second: list[int | None] | None, *, lane: Lane, caller: str) -> Job:
        """Queue sequences and wait for all rows; the finished Job has rows, queue_seconds, compute_seconds.

        Cancelling the awaiting task drops what is still queued. Raises Unavailable (queue full, deadline, engine down), InternalError (a row
        that the model cannot compute).
        """
        raise NotImplementedError

    def fingerprint(self) -> str | None:
        """The embedding fingerprint, once the embedding model is described."""
        raise NotImplementedError

    def health(self) -> tuple[int, dict[str, Any]]:
        """Status (200 or 503) and body of GET /health."""
        raise NotImplementedError
