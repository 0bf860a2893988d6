"""What the compute routes share: lane, caller, token limits, one computation per distinct sequence, headers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from starlette.datastructures import State
from starlette.requests import Request

from embed_service.errors import BadRequest
from embed_service.models.spec import ModelSpec, Role
from embed_service.routes.peers import caller_of
from embed_service.routes.record import record_of
from embed_service.telemetry import metrics
from embed_service.text.tokens import Tokenised

if TYPE_CHECKING:
    from embed_service.scheduler.cache import Caching
    from embed_service.scheduler.service import ServedModel, Service
    from embed_service.settings import Settings

__all__ = ["Computation", "answered_model", "caching_of", "lane_of", "model_header"]

T = TypeVar("T")
Lane = Literal["interactive", "bulk"]
LARGE_TOKENS = 65_536  # from here on comparing sequences takes part of a millisecond


def lane_of(request: Request) -> Lane | None:
    """The lane that header x-lane asks for. Raises BadRequest."""
    lane = request.headers.get("x-lane")
    if lane is None:
        return None
    lane = lane.lower()
    if lane == "interactive":
        return "interactive"
    if lane == "bulk":
        return "bulk"
    raise BadRequest("x-lane: must be 'interactive' or 'bulk'. Leave the header out to let the server choose.", param="x-lane")


def caching_of(request: Request) -> Caching:
    """What the request's Cache-Control allows (RFC 9111, 5.2.1): `no-cache` wants it computed, `no-store` wants nothing kept besides."""
    directives = {part.partition("=")[0].strip().lower() for line in request.headers.getlist("cache-control") for part in line.split(",")}
    return "off" if "no-store" in directives else "refresh" if "no-cache" in directives else "reuse"


def answered_model(asked: object, served: str, aliases: Sequence[str]) -> str:
    """The name in the answer: the request's own where it is a configured alias, else the served model's."""
    return asked if isinstance(asked, str) and asked in aliases else served


def model_header(model: str) -> dict[str, str]:
    """A header cannot carry more than Latin-1; a folder's name can."""
    return {"x-model": model.encode("ascii", "replace").decode()}


@dataclass
class Computation:
    """One request's way through tokeniser and engine, with the seconds that its headers tell."""

    request: Request
    lane: Lane | None
    tokenise_seconds: float = 0.0
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0
    tokens: int = 0
    truncated: int = 0
    dropped: list[str] = field(default_factory=list)  # fields that the served model has no use for

    @property
    def state(self) -> State:
        state: State = self.request.app.state
        return state

    @property
    def settings(self) -> Settings:
        return self.service.settings

    @property
    def service(self) -> Service:
        service: Service = self.state.service
        return service

    async def admitted(self, work: Callable[[], Awaitable[T]]) -> T:
        """The result of `work`, throughout which the models stay the same. Raises Unavailable (503) when they do not come in time."""
        async with self.service.admitted():
            return await work()

    async def tokenised(self, role: Role, work: Awaitable[list[T]]) -> list[T]:
        """Await tokenising and count its time."""
        start = time.perf_counter()
        result = await work
        self.tokenise_seconds += time.perf_counter() - start
        metrics.tokenise_seconds.labels(role).observe(self.tokenise_seconds)
        return result

    def count(self, role: Role, sequences: Sequence[Tokenised]) -> None:
        """Note tokens and cuts."""
        self.tokens = sum(len(s.ids) for s in sequences)
        self.truncated = sum(s.cut for s in sequences)
        metrics.inputs.labels(role).inc(len(sequences))
        metrics.truncated_inputs.labels(role).inc(self.truncated)
        record = record_of(self.request)
        record.items, record.tokens, record.truncated = len(sequences), self.tokens, self.truncated

    async def rows(self, served: ServedModel, sequences: Sequence[Tokenised], default_lane: Lane) -> NDArray[np.float32]:
        """float32 [n, dimensions] or [n, 1]: a row for each sequence of the model's tokeniser; equal sequences are computed once."""
        lane = self.lane or default_lane
        record_of(self.request).lane = lane
        distinct, inverse = _distinct(sequences) if self.tokens < LARGE_TOKENS else await asyncio.to_thread(_distinct, sequences)
        computed = await self.service.compute(
            served.spec.role,
            [s.ids for s in distinct],
            [s.second for s in distinct],
            [s.prefix for s in distinct],
            lane=lane,
            caller=await caller_of(self.request.scope, self.state.peers),
            caching=caching_of(self.request),
            tokenised_by=served,
        )
        self.queue_seconds, self.compute_seconds = computed.queue_seconds, computed.compute_seconds
        return computed.rows if len(distinct) == len(sequences) else computed.rows[inverse]

    def headers(self, model: str) -> dict[str, str]:
        """Of an answer by the model with this id."""
        timing = {"queue": self.queue_seconds, "tokenise": self.tokenise_seconds, "compute": self.compute_seconds}
        fingerprint = self.service.fingerprint()
        headers = {
            **model_header(model),
            "x-truncated-inputs": str(self.truncated),
            "server-timing": ", ".join(f"{name};dur={seconds * 1000:.1f}" for name, seconds in timing.items()),
        }
        if fingerprint:
            headers["x-embedding-fingerprint"] = fingerprint
        if self.dropped:
            headers["x-dropped-fields"] = ", ".join(self.dropped)
        return headers

    @staticmethod
    def refuse_cut(sequences: Sequence[Tokenised], spec: ModelSpec, param: str) -> None:
        """Raise BadRequest for the first sequence that would be cut."""
        for index, sequence in enumerate(sequences):
            if sequence.cut:
                name = f"{param}[{index}]"
                by_model = sequence.full > spec.max_tokens  # else a limit of the request's own cut it
                whose, most = ("this model's", spec.max_tokens) if by_model else ("this request's", len(sequence.ids))
                raise BadRequest(
                    f"{name}: {whose} maximum context length is {most} tokens, but the text has {sequence.full}. "
                    "Shorten it, or let it be cut with truncate: true.",
                    param=name,
                    code="context_length_exceeded",
                )


def _distinct(sequences: Sequence[Tokenised]) -> tuple[list[Tokenised], list[int]]:
    """Each sequence once, in the order of its first occurrence, and where each of `sequences` stands among them.

    The prefix of the first holds for all: what it shares with its own query's documents, it does share.
    """
    first: dict[tuple[bytes, int | None], int] = {}
    distinct: list[Tokenised] = []
    inverse = []
    for sequence in sequences:
        index = first.setdefault((sequence.ids.tobytes(), sequence.second), len(first))
        if index == len(distinct):
            distinct.append(sequence)
        inverse.append(index)
    return distinct, inverse
