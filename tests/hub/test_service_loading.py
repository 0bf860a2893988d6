"""The real service while its models come from the (fake) hub: progress, waiting requests, resume, pinning, the cache alone."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from embed_service.probe import report
from tests.hub.resolver import resolve
from tests.support.hub import FakeHub
from tests.support.service import ServiceProcess, poll

ID = "org/minilm"
SLOW = 4_000_000  # bytes per second: a download that takes longer than any look at it


@pytest.fixture
def environment(hub: FakeHub, tmp_path: Path, minilm: str) -> dict[str, str]:
    hub.add(ID, Path(minilm))
    return {**hub.environment(tmp_path / "home"), "EMBED_MODEL": ID, "RERANK_MODEL": ID, "LOAD_WAIT_SECONDS": "200"}


@pytest.fixture(scope="module")
def expected(minilm: str) -> Iterator[list[float]]:
    """The embedding of "hello", by sentence-transformers itself."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(minilm, device="cpu")
    yield model.encode("hello", normalize_embeddings=True).tolist()


def embed(service: ServiceProcess, **fields: Any) -> httpx.Response:
    with service.client() as client:
        return client.post("/v1/embeddings", json={"input": "hello", **fields})


def is_right(answer: httpx.Response, expected: list[float]) -> bool:
    assert answer.status_code == 200, answer.text
    vector = answer.json()["data"][0]["embedding"]
    return sum(a * b for a, b in zip(vector, expected, strict=True)) > 0.9999


def wait_for_download(service: ServiceProcess, more_than: int = 0) -> dict[str, Any]:
    """The body of /health in the middle of a download."""

    def downloading() -> dict[str, Any] | None:
        body = service.health()[1]
        progress = body.get("progress", {})
        return body if body.get("phase") == "downloading" and more_than < progress["done_bytes"] < progress["total_bytes"] else None

    return poll(downloading, 120, "a download in progress")  # type: ignore[no-any-return]


def test_progress_is_shown_and_requests_wait(hub: FakeHub, environment: dict[str, str], tmp_path: Path, expected: list[float]) -> None:
    hub.bytes_per_second = SLOW
    with ServiceProcess(environment, tmp_path / "log") as service, ThreadPoolExecutor(1) as pool:
        first = wait_for_download(service)
        assert first["status"] == "loading"
        assert first["progress"]["total_bytes"] == 91_607_178
        assert first["progress"]["text"].startswith("downloading ") and first["progress"]["text"].endswith(" of 0.09 GB")
        waiting = pool.submit(embed, service)
        second = wait_for_download(service, more_than=first["progress"]["done_bytes"])
        assert second["status"] == "loading"
        assert not waiting.done()
        hub.bytes_per_second = None
        assert is_right(waiting.result(120), expected)
        assert service.health()[1]["status"] == "ok"


def test_an_engine_killed_in_a_download_goes_on_where_it_was(
    hub: FakeHub, environment: dict[str, str], tmp_path: Path, expected: list[float]
) -> None:
    hub.bytes_per_second = SLOW
    with ServiceProcess(environment, tmp_path / "log") as service:
        body = wait_for_download(service, more_than=5_000_000)
        os.kill(body["engine"]["pid"], signal.SIGKILL)
        hub.bytes_per_second = None
        service.wait_healthy()
        assert is_right(embed(service), expected)
    (resumed,) = [entry for entry in hub.file_requests("model.safetensors") if entry.status == 206]
    assert resumed.range is not None and int(resumed.range.removeprefix("bytes=").removesuffix("-")) > 4_000_000


def test_a_cut_connection_is_taken_up_again(hub: FakeHub, environment: dict[str, str], tmp_path: Path, expected: list[float]) -> None:
    hub.cut_after = 20_000_000
    with ServiceProcess(environment, tmp_path / "log") as service:
        service.wait_healthy()
        assert is_right(embed(service), expected)
    assert [entry.range for entry in hub.file_requests("model.safetensors")] == [None, "bytes=20000000-"]


def test_a_network_that_breaks_is_a_download_that_stalls_and_goes_on(
    hub: FakeHub, environment: dict[str, str], tmp_path: Path, expected: list[float]
) -> None:
    """The engine is killed meanwhile: the next one cannot even ask the hub."""
    hub.break_after = 20_000_000
    with ServiceProcess(environment | {"HF_HUB_DOWNLOAD_TIMEOUT": "1"}, tmp_path / "log") as service:
        poll(lambda: hub.broken, 120, "the break")
        stalled = poll(lambda: (line := report(service.health()[1])).get("stalled_seconds", 0) > 1 and line, 60, "a stall")
        assert (stalled["status"], stalled["phase"]) == ("loading", "downloading")
        with contextlib.suppress(ProcessLookupError):  # a small file that the hub was asked for just then has ended it already
            os.kill(service.health()[1]["engine"]["pid"], signal.SIGKILL)
        body = poll(lambda: (body := service.health()[1]).get("error_code") == "offline" and body, 120, "the hub asked in vain")
        assert body["status"] == "error" and "check the network" in body["error"]
        line = report(body)
        assert (line["status"], line["phase"]) == ("loading", "downloading")
        assert (line["done_bytes"], line["total_bytes"]) == (stalled["done_bytes"], stalled["total_bytes"])
        poll(lambda: report(service.health()[1])["stalled_seconds"] > stalled["stalled_seconds"], 30, "a stall that grows")
        hub.mend()
        service.wait_healthy()
        assert is_right(embed(service), expected)
    assert [entry.status for entry in hub.file_requests("model.safetensors")][-1] == 206


def test_the_cache_alone_is_enough(hub: FakeHub, environment: dict[str, str], tmp_path: Path, expected: list[float]) -> None:
    assert resolve(environment).revision
    hub.close()
    with ServiceProcess(environment, tmp_path / "log") as service:
        service.wait_healthy()
        assert is_right(embed(service), expected)


def test_a_branch_that_moves_is_not_followed_until_asked(hub: FakeHub, environment: dict[str, str], tmp_path: Path, minilm: str) -> None:
    old = resolve(environment).revision
    changed = tmp_path / "changed"
    for file in Path(minilm).rglob("*"):
        if file.is_file() and file.name != "README.md":
            (changed / file.relative_to(minilm)).parent.mkdir(parents=True, exist_ok=True)
            (changed / file.relative_to(minilm)).symlink_to(file)
    new = hub.add(ID, changed)
    assert new != old

    def fingerprint(extra: dict[str, str]) -> str:
        with ServiceProcess(environment | extra, tmp_path / "log") as service:
            return str(poll(lambda: service.health()[1].get("fingerprint"), 120, "a fingerprint, known before the weights are loaded"))

    unasked = fingerprint({})
    assert unasked == fingerprint({"EMBED_REVISION": old})
    assert unasked != fingerprint({"EMBED_REVISION": new})


def test_code_in_a_repository_is_never_run(
    hub: FakeHub, environment: dict[str, str], tmp_path: Path, minilm: str, expected: list[float]
) -> None:
    proof = tmp_path / "proof"
    folder = tmp_path / "with-code"
    for file in Path(minilm).rglob("*"):
        if file.is_file() and file != Path(minilm) / "config.json":
            (folder / file.relative_to(minilm)).parent.mkdir(parents=True, exist_ok=True)
            (folder / file.relative_to(minilm)).symlink_to(file)
    config = (Path(minilm) / "config.json").read_text().replace("{", '{"auto_map": {"AutoConfig": "remote.C", "AutoModel": "remote.M"},', 1)
    (folder / "config.json").write_text(config)
    (folder / "remote.py").write_text(f"open({str(proof)!r}, 'w').close()\nclass C: pass\nclass M: pass\n")
    hub.add("org/code", folder)
    for model in ("org/code", str(folder)):
        with ServiceProcess(environment | {"EMBED_MODEL": model, "RERANK_MODEL": model}, tmp_path / "log") as service:
            service.wait_healthy()
            assert is_right(embed(service, trust_remote_code=True, model=model), expected)
    assert not proof.exists(), "the code has run"
    assert hub.file_requests("remote.py") == []
