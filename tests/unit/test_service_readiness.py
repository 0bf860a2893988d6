"""Requests that wait for models whose engine is ready before their tokenizers are."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from embed_service.errors import Unavailable
from embed_service.models.spec import ModelSpec
from embed_service.scheduler.service import Service
from embed_service.settings import Settings


def test_a_tokenizer_that_is_refused_while_requests_wait_is_503_with_the_cause(tmp_path: Path) -> None:
    spec = ModelSpec(
        role="embed", id="without-tokenizer", revision="r", path=str(tmp_path), architecture="bert", kind="embedding", max_tokens=64,
        vocabulary=30_522, segments=True,
    )  # fmt: skip

    async def request() -> None:
        service = Service(Settings(load_wait_seconds=5))
        service._supervisor.ready.set()  # the engine was quicker
        service._on_described({"embed": spec})
        await service.wait_ready("embed")

    with pytest.raises(Unavailable, match=r"without-tokenizer has no tokenizer\.json"):
        asyncio.run(request())
