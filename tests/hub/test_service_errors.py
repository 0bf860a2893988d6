"""A model or a device that cannot be had: the service stays up, says why in one sentence, and `check` says the same."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.hub import FakeHub
from tests.support.service import ROOT, ServiceProcess, poll

ID = "org/minilm"
TOKEN = "hf_secretSecretSecret"


@pytest.fixture
def environment(hub: FakeHub, tmp_path: Path, minilm: str) -> dict[str, str]:
    hub.add(ID, Path(minilm))
    return {**hub.environment(tmp_path / "home"), "EMBED_MODEL": ID, "RERANK_MODEL": ID}


def wait_for_error(service: ServiceProcess) -> dict[str, Any]:
    def failed() -> dict[str, Any] | None:
        status, body = service.health()
        return body if status == 503 and body["status"] == "error" else None

    return poll(failed, 120, "an error in /health")  # type: ignore[no-any-return]


def check(service: ServiceProcess) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "embed_service", "check"],
        cwd=ROOT, env=service.environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


def assert_says(service: ServiceProcess, code: str, *words: str) -> str:
    """The error of /health, /livez, of a request and of `check`; returns the sentence."""
    body = wait_for_error(service)
    sentence = str(body["error"])
    assert body["error_code"] == code
    assert body["phase"] == "error" and body["models"]["embed"] == service.environment["EMBED_MODEL"]
    for word in words:
        assert word in sentence
    assert "\n" not in sentence and "Traceback" not in sentence
    assert httpx.get(f"{service.url}/livez").status_code == 200
    for path, payload in (("/v1/embeddings", {"input": "x"}), ("/v1/rerank", {"query": "x", "documents": ["y"]})):
        answer = httpx.post(service.url + path, json=payload, timeout=30)
        assert answer.status_code == 503
        assert answer.json()["error"]["message"] == sentence
        assert int(answer.headers["retry-after"]) >= 1
    assert service.process is not None and service.process.poll() is None
    status, printed = check(service)
    assert status == 3
    assert sentence in printed
    return sentence


def test_unknown_model(environment: dict[str, str], tmp_path: Path) -> None:
    with ServiceProcess(environment | {"EMBED_MODEL": "Qwen/Qwen3-Embeding-4B"}, tmp_path / "log") as service:
        assert_says(service, "not_found", "EMBED_MODEL=Qwen/Qwen3-Embeding-4B", "Did you mean Qwen/Qwen3-Embedding-4B?")


def test_a_gated_model_is_loaded_once_its_licence_is_accepted(hub: FakeHub, environment: dict[str, str], tmp_path: Path) -> None:
    hub.repositories[ID].gated = True
    hub.tokens[TOKEN] = set()
    secret = tmp_path / "token"
    with ServiceProcess(environment | {"HF_TOKEN_FILE": str(secret)}, tmp_path / "log") as service:
        assert_says(service, "gated", f"EMBED_MODEL={ID} is gated", "HF_TOKEN_FILE")
        hub.tokens[TOKEN] = {ID}
        secret.write_text(TOKEN + "\n")
        service.wait_healthy(200)  # tries come further and further apart
    assert TOKEN not in (tmp_path / "log").read_text()


def test_a_wrong_token(environment: dict[str, str], tmp_path: Path) -> None:
    with ServiceProcess(environment | {"HF_TOKEN": TOKEN}, tmp_path / "log") as service:
        assert TOKEN not in assert_says(service, "unauthorized", "the token of HF_TOKEN", "put a new one")
    assert TOKEN not in (tmp_path / "log").read_text()


def test_pickled_weights_only(hub: FakeHub, environment: dict[str, str], minilm: str, tmp_path: Path) -> None:
    for file in Path(minilm).glob("*.json"):
        (tmp_path / "pickled" / file.name).parent.mkdir(exist_ok=True)
        (tmp_path / "pickled" / file.name).symlink_to(file)
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"\x80\x02")
    hub.add("org/pickled", tmp_path / "pickled")
    with ServiceProcess(environment | {"EMBED_MODEL": "org/pickled"}, tmp_path / "log") as service:
        assert_says(service, "no_safetensors", "pickled weights", "set EMBED_MODEL")
    assert hub.file_requests(".bin") == []


def test_no_disk(hub: FakeHub, environment: dict[str, str], full_disk: dict[str, str], tmp_path: Path) -> None:
    with ServiceProcess(environment | full_disk, tmp_path / "log") as service:
        assert_says(service, "no_disk", "free some space", str(tmp_path / "home"))


@pytest.mark.skipif(os.path.exists("/dev/nvidia0"), reason="this machine has CUDA")
def test_no_cuda(environment: dict[str, str], minilm: str, tmp_path: Path) -> None:
    with ServiceProcess(environment | {"EMBED_MODEL": minilm, "RERANK_MODEL": minilm, "DEVICE": "cuda"}, tmp_path / "log") as service:
        sentence = assert_says(service, "no_cuda", "DEVICE=cuda", "DEVICE=auto or DEVICE=cpu")
        assert len(re.findall(r"\.(\s|$)", sentence)) == 1
        assert service.health()[1]["cuda_available"] is False
