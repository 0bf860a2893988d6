"""The Ray node's command line, another machine's clock, and what an actor is made of."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from embed_service.cluster.clock import RemoteClock
from embed_service.cluster.node import main, start_command
from embed_service.engine.protocol import Header
from embed_service.errors import SettingsError
from embed_service.scheduler import ray_link
from embed_service.scheduler.link import ChildEngine, OnMessage
from embed_service.scheduler.ray_link import RayDriver, RayEngine, new_engines
from embed_service.settings import Settings
from tests.support.require import require
from tests.support.service import ROOT


def settings(tmp_path: Path, **values: Any) -> Settings:
    token = tmp_path / "token"
    token.write_text("a" * 64)
    return Settings(**{"ray_node_ip": "192.168.7.1", "ray_auth_token_path": str(token), **values})


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"ray_node_ip": None}, "RAY_NODE_IP is not set"),
        ({"ray_auth_token_path": None}, "RAY_AUTH_TOKEN_PATH names no file"),
        ({"ray_auth_token_path": "/dev/null"}, "RAY_AUTH_TOKEN_PATH names no file"),
        ({}, "RAY_ADDRESS is not set"),
    ],
)
def test_a_node_does_not_start_open_or_without_a_head(tmp_path: Path, values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        start_command(settings(tmp_path, **values), head=False)


def test_a_head_and_a_node_have_fixed_ports_no_dashboard_and_send_nothing_home(tmp_path: Path) -> None:
    head = start_command(settings(tmp_path, ray_node_gpus=0), head=True)
    node = start_command(settings(tmp_path, ray_address="192.168.7.1:6379"), head=False)
    assert {"--head", "--port=6379", "--include-dashboard=false", "--num-gpus=0"} <= set(head)
    assert "--address=192.168.7.1:6379" in node and "--head" not in node and not any(part.startswith("--num-gpus") for part in node)
    for command in (head, node):
        assert {"--block", "--disable-usage-stats", "--node-ip-address=192.168.7.1", "--object-store-memory=200000000"} <= set(command)


def test_a_node_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("RAY_NODE_IP", raising=False)
    assert main([]) == 2
    assert "RAY_NODE_IP is not set" in capsys.readouterr().err


def test_a_probe_of_a_node_that_is_not_there_is_unhealthy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RAY_NODE_IP", "127.0.0.1")
    assert main(["--probe"]) == 1
    assert '"status": "loading"' in capsys.readouterr().out


def test_a_remote_clock_believes_the_fastest_message() -> None:
    clock = RemoteClock()
    clock.heard(1000.0, 50.5)
    clock.heard(1001.0, 51.01)
    clock.heard(1002.0, 54.0)
    assert clock.here(1010.0) == pytest.approx(60.01, abs=1e-3)


def test_a_remote_clock_follows_drift() -> None:
    clock = RemoteClock()
    for second in range(100_000):
        clock.heard(second * (1 - 5e-5), float(second))
    assert clock.here(99_999 * (1 - 5e-5)) == pytest.approx(99_999, abs=0.01)


def test_boxes_compute_as_they_say_and_answer_as_the_head_says() -> None:
    """And an engine that was sent away for its revision is told the one that the others have."""

    async def check() -> None:
        driver = RayDriver(Settings(device="cpu", max_input_tokens=512))
        models = {"EMBED_MODEL": "a", "RERANK_MODEL": "b", "EMBED_REVISION": "", "RERANK_REVISION": "r"}
        order = driver._order(models)
        assert order["own"]["DEVICE"] == "cpu" and "DEVICE" not in order["environment"]
        assert order["environment"]["MAX_INPUT_TOKENS"] == "512"
        assert (order["environment"]["EMBED_REVISION"], order["environment"]["RERANK_REVISION"]) == ("", "r")
        driver._links[0] = RayEngine(driver, 0, lambda header, body: None, models)
        described = {"embed": {"id": "a", "revision": "c0ffee"}, "rerank": {"id": "b", "revision": "local-1"}}
        driver._on_message({"type": "described", "models": described, "engine": 0}, b"")
        assert driver._order(models)["environment"]["EMBED_REVISION"] == "c0ffee"

    asyncio.run(check())


class FakeChild:
    """FAKE process that speaks to Ray: keeps what it was sent; `start` does what the test says."""

    pid = None

    def __init__(self, on_message: OnMessage, start: Callable[[], Awaitable[None]]) -> None:
        self.on_message = on_message
        self.start = start
        self.sent: list[Header] = []
        self.stopped = False
        self.ended: asyncio.Future[int | str] = asyncio.get_running_loop().create_future()

    def send(self, header: Header, body: bytes = b"") -> None:
        self.sent.append(header)

    def kill(self) -> None:
        self.ended.set_result(-9)

    async def stop(self, seconds: float) -> None:
        self.stopped = True


def with_children(monkeypatch: pytest.MonkeyPatch, *starts: Callable[[], Awaitable[None]]) -> list[FakeChild]:
    """The children that a driver makes from now on, one for each of `starts`."""
    children: list[FakeChild] = []

    def make(on_message: OnMessage, environment: object, module: str, own_group: bool) -> FakeChild:
        children.append(FakeChild(on_message, starts[len(children)]))
        return children[-1]

    monkeypatch.setattr(ray_link, "ChildEngine", make)
    return children


MODELS = {"EMBED_MODEL": "a", "RERANK_MODEL": "b"}


async def at_once() -> None: ...


async def never() -> None:
    await asyncio.Event().wait()


async def no_process() -> None:
    raise OSError("no process to be had")


def test_a_start_that_failed_or_was_cancelled_leaves_nothing_in_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        children = with_children(monkeypatch, no_process, never, at_once)
        driver = RayDriver(Settings())
        link = RayEngine(driver, 0, lambda header, body: None, MODELS)
        with pytest.raises(OSError, match="no process"):
            await link.start()
        await asyncio.wait_for(link.stop(3), 5)
        starting = asyncio.create_task(link.start())
        await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        await asyncio.wait_for(link.stop(3), 5)
        await link.start()
        assert [child.stopped for child in children] == [True, True, False]
        assert [header["type"] for header in children[2].sent] == ["start"]

    asyncio.run(check())


@pytest.mark.parametrize("answers", [True, False], ids=["its box is silent", "all is silent"])
def test_an_engine_that_cannot_be_killed_is_given_up_alone(monkeypatch: pytest.MonkeyPatch, answers: bool) -> None:
    async def check() -> None:
        monkeypatch.setattr(ray_link, "KILL_SECONDS", 0.0)
        monkeypatch.setattr(ray_link, "DROP_SECONDS", 0.2)
        children = with_children(monkeypatch, at_once)
        driver = RayDriver(Settings())
        silent, other = (RayEngine(driver, number, lambda header, body: None, MODELS) for number in range(2))
        await silent.start()
        await other.start()
        silent.kill()
        child = children[0]
        while not any(header["type"] == "drop" for header in child.sent):
            await asyncio.sleep(0)
        if answers:
            child.on_message({"type": "ended", "how": "its box did not answer", "engine": 0}, b"")
        await asyncio.wait_for(silent.ended, 5)
        await asyncio.sleep(0)
        assert child.ended.done() == other.ended.done() == (not answers)

    asyncio.run(check())


def test_engines_that_end_one_after_the_other_have_the_time_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    engines = 200

    async def check() -> None:
        monkeypatch.setattr(ray_link, "END_SECONDS", 0.1)
        children = with_children(monkeypatch, at_once)
        driver = RayDriver(Settings())
        links = [RayEngine(driver, number, lambda header, body: None, MODELS) for number in range(engines)]
        for link in links:
            await link.start()
        (child,) = children
        ends = [asyncio.create_task(link.stop(0.1)) for link in links]

        def left() -> None:
            for link in links:
                child.on_message({"type": "left", "engine": link.number}, b"")

        asyncio.get_running_loop().call_later(0.5, left)  # later than one engine has
        await asyncio.gather(*ends)
        assert not child.ended.done(), "the process that speaks to Ray was killed"

    asyncio.run(check())


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"RAY_NODE_IP": ""}, "RAY_NODE_IP is not set"),
        ({"RAY_AUTH_TOKEN_PATH": "/dev/null"}, "RAY_AUTH_TOKEN_PATH names no file"),
        ({"PYTHONPATH": "{without_ray}"}, "ENGINES=ray needs Ray"),
    ],
    ids=["no address", "an empty token", "the image without Ray"],
)
def test_every_engine_is_told_what_keeps_ray_from_starting(tmp_path: Path, environment: dict[str, str], sentence: str) -> None:
    if "PYTHONPATH" not in environment:
        require("ray", importlib.util.find_spec("ray") is not None, "Ray is not installed: make test installs it")
    without_ray = tmp_path / "without"
    without_ray.mkdir()
    (without_ray / "ray.py").write_text("raise ImportError('No module named ray')")
    token = tmp_path / "token"
    token.write_text("a" * 64)

    async def check() -> None:
        values = {"RAY_NODE_IP": "127.0.0.1", "RAY_AUTH_TOKEN_PATH": str(token), "PYTHONPATH": str(ROOT), **environment}
        values["PYTHONPATH"] = values["PYTHONPATH"].format(without_ray=f"{without_ray}:{ROOT}")
        heard: list[Header] = []
        child = ChildEngine(lambda header, body: heard.append(header), values, "embed_service.cluster")
        await child.start()
        assert await asyncio.wait_for(child.ended, 60) == 1
        failed = [header for header in heard if header["type"] == "failed"]
        assert len(failed) == 1 and failed[0]["engine"] is None and sentence in failed[0]["message"]
        driver = RayDriver(Settings())
        told: list[list[Header]] = [[], []]
        for number in range(2):
            driver._links[number] = RayEngine(driver, number, lambda header, body, of=number: told[of].append(header), MODELS)  # type: ignore[misc]
        driver._on_message(failed[0], b"")
        assert [header["message"] for of in told for header in of] == [failed[0]["message"]] * 2

    asyncio.run(check())


def test_engines_by_setting() -> None:
    assert len(new_engines(Settings())) == 1
    assert len(new_engines(Settings(engines="ray", ray_engines=3))) == 3
