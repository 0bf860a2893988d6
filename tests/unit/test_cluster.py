"""The Ray node's command line, another machine's clock, and what an actor is made of."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from embed_service.cluster.clock import RemoteClock
from embed_service.cluster.node import main, start_command
from embed_service.errors import SettingsError
from embed_service.scheduler.ray_link import RayDriver, RayEngine, new_engines
from embed_service.settings import Settings


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


def test_engines_by_setting() -> None:
    assert len(new_engines(Settings())) == 1
    assert len(new_engines(Settings(engines="ray", ray_engines=3))) == 3
