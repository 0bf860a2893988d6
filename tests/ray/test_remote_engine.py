"""What the driver makes of an engine's frames, without a cluster: the actor is FAKE."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from tests.support.require import require

pytestmark = pytest.mark.ray


class FakeActor:
    """FAKE actor: `read.remote(folder)` gives the tokeniser of the engine's box."""

    def __init__(self) -> None:
        self.read = self

    async def remote(self, folder: str) -> dict[str, bytes]:
        return {"tokenizer.json": b"of the engine's box"}


@pytest.mark.parametrize(
    ("revision", "tokenizer"),
    [("local-0123456789ab", "of the engine's box"), ("c0ffee", "of this machine")],
    ids=["a folder", "a commit of the hub"],
)
def test_a_folder_s_tokeniser_comes_from_the_engine_whatever_lies_at_its_path_here(tmp_path: Path, revision: str, tokenizer: str) -> None:
    require("ray", importlib.util.find_spec("ray") is not None, "Ray is not installed: make test installs it")
    from embed_service.cluster.clock import RemoteClock
    from embed_service.cluster.remote_engine import RemoteEngine

    (tmp_path / "tokenizer.json").write_text("of this machine")
    engine = RemoteEngine(lambda header, body: None)
    header: dict[str, Any] = {"type": "described", "models": {"embed": {"path": str(tmp_path), "revision": revision}}}
    asyncio.run(engine._translated(FakeActor(), RemoteClock(), header))
    assert (Path(header["models"]["embed"]["path"]) / "tokenizer.json").read_text() == tokenizer
