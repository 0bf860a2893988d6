"""What the driver makes of an engine's frames, without a cluster: the actor is FAKE."""

from __future__ import annotations

import asyncio
import importlib.util
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.support.require import require

pytestmark = pytest.mark.ray


@pytest.fixture(autouse=True)
def needs_ray() -> None:
    require("ray", importlib.util.find_spec("ray") is not None, "Ray is not installed: make test installs it")


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
    from embed_service.cluster.clock import RemoteClock
    from embed_service.cluster.remote_engine import RemoteEngine

    (tmp_path / "tokenizer.json").write_text("of this machine")
    engine = RemoteEngine(lambda header, body: None)
    header: dict[str, Any] = {"type": "described", "models": {"embed": {"path": str(tmp_path), "revision": revision}}}
    asyncio.run(engine._translated(FakeActor(), RemoteClock(), header))
    assert (Path(header["models"]["embed"]["path"]) / "tokenizer.json").read_text() == tokenizer


def test_a_folder_of_another_s_gets_no_tokeniser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from embed_service.cluster import remote_engine

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    files = {"tokenizer.json": b"{}"}
    folder = Path(remote_engine._write(files))
    assert folder.parent == tmp_path and remote_engine._write(files) == str(folder)
    elsewhere = folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(elsewhere)
    with pytest.raises(PermissionError, match=folder.name):
        remote_engine._write(files)
    folder.unlink()
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(PermissionError, match=folder.name):
        remote_engine._write(files)


def test_a_share_is_back_though_floats_do_not_add_up() -> None:
    from embed_service.cluster.remote_engine import _has_back

    before, share = {"CPU": 2.0, "GPU": 0.1}, {"CPU": 1.0, "GPU": 0.2}
    assert before["GPU"] + share["GPU"] > 0.3
    assert _has_back(before, {"CPU": 3.0, "GPU": 0.3}, share)
    assert not _has_back(before, {"CPU": 3.0, "GPU": 0.1}, share)
    assert not _has_back({}, {}, {"CPU": 0.01, "GPU": 0.0})


def test_what_has_no_place_ends_before_what_frees_one() -> None:
    """Else Ray would give it the device that the other frees, and it would start there."""
    from embed_service.cluster.driver import Driver
    from embed_service.settings import Settings

    class FakeEngine:
        """FAKE engine of the cluster: `leave` takes until `freed`."""

        def __init__(self, placed: bool, freed: asyncio.Event) -> None:
            self.placed, self.freed, self.ended = placed, freed, False

        def end(self) -> None:
            self.ended = True

        async def leave(self) -> None:
            await self.freed.wait()
            self.end()

    async def check() -> None:
        driver, freed, sent = Driver(Settings()), asyncio.Event(), []
        driver._send = lambda number, header, body=b"": sent.append(number)  # type: ignore[method-assign]
        engines = [FakeEngine(True, freed), FakeEngine(True, freed), FakeEngine(False, freed)]
        driver._engines = dict(enumerate(engines))  # type: ignore[arg-type]
        for number in driver._engines:
            driver._on_frame(number, {"type": "end"}, b"")
        async with asyncio.timeout(30):
            while not sent:
                await asyncio.sleep(0)
        assert ([engine.ended for engine in engines], sent) == ([False, False, True], [2])
        freed.set()
        await asyncio.gather(*driver._ends.values())
        assert sent == [2, 0, 1]

    asyncio.run(check())


def test_an_engine_without_a_place_keeps_no_other_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that does not say what it has free blocks the thread that asks it, and nothing else."""
    from embed_service.cluster import remote_engine

    class FakeActors:
        """FAKE of a class of actors: one that never answers."""

        def __init__(self) -> None:
            self.hello = self

        def options(self, **_: object) -> FakeActors:
            return self

        def remote(self, *_: object) -> Any:
            return self if _ else asyncio.get_running_loop().create_future()

    async def check() -> None:
        asked, answer = threading.Event(), threading.Event()

        def free() -> dict[str, float]:
            asked.set()
            answer.wait(30)
            return {"CPU": 0.0}

        monkeypatch.setattr(remote_engine, "EngineActor", FakeActors())
        monkeypatch.setattr(remote_engine, "TICK_SECONDS", 0.01)
        monkeypatch.setattr(remote_engine, "_free", free)
        heard: list[dict[str, Any]] = []
        engine = remote_engine.RemoteEngine(lambda header, body: heard.append(header))
        order = {"num_cpus": 1.0, "num_gpus": 0.0, "environment": {}, "own": {}}
        life = asyncio.create_task(engine.run(order))
        while not asked.is_set():
            await asyncio.sleep(0)
        assert not heard and not life.done()
        answer.set()
        while not heard:
            await asyncio.sleep(0)
        assert heard[0] == {"type": "phase", "phase": "placing", "detail": "no box has 1 CPU free"}
        life.cancel()
        with pytest.raises(asyncio.CancelledError):
            await life

    asyncio.run(check())
