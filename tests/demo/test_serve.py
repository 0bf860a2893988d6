"""`python -m demo.serve`: the service alone, on small models unless the environment says otherwise."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from demo import serve
from tests.support.service import ROOT, free_port, minilm_path, poll


def test_defaults_are_the_small_model_twice_on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EMBED_MODEL", "RERANK_MODEL", "HOST", "PORT"):
        monkeypatch.delenv(name, raising=False)
    chosen = serve.environment()
    assert chosen["EMBED_MODEL"] == chosen["RERANK_MODEL"] == minilm_path()
    assert (chosen["HOST"], chosen["PORT"]) == ("127.0.0.1", "8001")


def test_the_environment_goes_before_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"EMBED_MODEL": "a/b", "RERANK_MODEL": "", "DEVICE": "mps", "PORT": "9000"}.items():
        monkeypatch.setenv(name, value)
    chosen = serve.environment()
    assert (chosen["EMBED_MODEL"], chosen["RERANK_MODEL"], chosen["DEVICE"], chosen["PORT"]) == ("a/b", "a/b", "mps", "9000")


def test_it_serves_until_interrupted(tmp_path: Path) -> None:
    port = free_port()
    kept = {k: v for k, v in os.environ.items() if k not in ("EMBED_MODEL", "RERANK_MODEL", "HOST")}
    log = tmp_path / "serve.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "demo.serve"],
            cwd=ROOT, env={**kept, "PORT": str(port), "DEVICE": "cpu"}, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"

    def healthy() -> bool:
        try:
            return httpx.get(f"{url}/health", timeout=10).status_code == 200
        except httpx.TransportError:
            return False

    try:
        poll(healthy, 120, "a healthy service")
        printed = log.read_text()
        assert f"curl -s {url}/v1/embeddings" in printed and f"curl -s {url}/v1/rerank" in printed
        process.send_signal(signal.SIGINT)
        process.wait(30)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/livez")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
