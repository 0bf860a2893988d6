"""`embed-service download`: models into the cache before anything is served, told in lines of JSON."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.hub.conftest import WEIGHTS_BYTES, fake_disk, write_repository
from tests.support.hub import FakeHub
from tests.support.service import ROOT

ID, OTHER = "org/model", "org/generator"


def start(models: list[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
    keep = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    return subprocess.Popen(
        [sys.executable, "-m", "embed_service", "download", *models], cwd=ROOT, env={**keep, "DEVICE": "cpu", **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def download(models: list[str], environment: Mapping[str, str]) -> tuple[int, list[dict[str, Any]]]:
    """Exit status and the lines, all of which must be JSON."""
    process = start(models, environment)
    out, err = process.communicate(timeout=120)
    assert "Traceback" not in err
    return process.returncode, [json.loads(line) for line in out.splitlines()]


@pytest.fixture
def environment(hub: FakeHub, tmp_path: Path) -> dict[str, str]:
    return hub.environment(tmp_path / "home")


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return write_repository(tmp_path / "other", seed=1)


def test_each_model_is_announced_then_complete_and_needs_no_hub_again(
    hub: FakeHub, environment: dict[str, str], repository: Path, other: Path
) -> None:
    commits = {ID: hub.add(ID, repository), OTHER: hub.add(OTHER, other)}
    status, lines = download([ID, OTHER, ID], environment)
    assert status == 0
    assert {line["model"] for line in lines[:2]} == {ID, OTHER}, "each is announced before the first byte of any"
    assert all(line["missing_bytes"] > WEIGHTS_BYTES for line in lines[:2])
    complete = {line["model"]: line for line in lines if "path" in line}
    assert {name: line["revision"] for name, line in complete.items()} == commits
    assert (Path(complete[OTHER]["path"]) / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert len(hub.file_requests(".safetensors")) == 2, "a model that is named twice is downloaded once"
    hub.close()
    status, lines = download([ID, OTHER], environment)
    assert status == 0
    assert [line["missing_bytes"] for line in lines if "missing_bytes" in line] == [0, 0]


def test_a_revision_is_taken_and_recorded(hub: FakeHub, environment: dict[str, str], repository: Path, other: Path) -> None:
    tagged = hub.add(ID, repository, branch="v1")
    hub.add(ID, other)
    status, lines = download([f"{ID}@v1"], environment)
    assert status == 0
    assert (lines[-1]["model"], lines[-1]["revision"]) == (f"{ID}@v1", tagged)
    record = json.loads((Path(environment["HF_HOME"]) / "hub/embed-service-revisions.json").read_text())
    assert tagged in json.dumps(record[ID]["v1"])


def test_one_that_fails_leaves_the_others_to_their_end(hub: FakeHub, environment: dict[str, str], repository: Path) -> None:
    hub.add(ID, repository)
    hub.add(OTHER, repository, gated=True)
    status, lines = download(["no/such", OTHER, ID], environment)
    assert status == 1
    last = {line["model"]: line for line in lines}
    assert (last["no/such"]["code"], last[OTHER]["code"]) == ("not_found", "gated")
    assert "HF_TOKEN_FILE" in last[OTHER]["error"]
    assert Path(last[ID]["path"], "model.safetensors").is_file()


def test_a_disk_too_small_is_a_sentence_with_its_free_bytes_before_the_first_byte(
    hub: FakeHub, environment: dict[str, str], repository: Path, tmp_path: Path
) -> None:
    hub.add(ID, repository)
    status, lines = download([ID], environment | fake_disk(tmp_path / "disk", 1_000_000))
    assert status == 1
    assert lines[-1]["code"] == "no_disk"
    assert "0.00 GB are free" in lines[-1]["error"]
    assert hub.file_requests(".safetensors") == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_download_ends_and_the_next_goes_on_where_it_stopped(
    hub: FakeHub, environment: dict[str, str], repository: Path, number: signal.Signals
) -> None:
    hub.add(ID, repository)
    hub.bytes_per_second = 1e6
    process = start([ID], environment)
    assert process.stdout is not None
    for line in process.stdout:  # ends with the process
        if json.loads(line).get("done_bytes", 0) > 500_000:
            break
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 128 + number
    hub.bytes_per_second = None
    status, lines = download([ID], environment)
    assert status == 0
    assert 0 < lines[0]["missing_bytes"] < WEIGHTS_BYTES
    resumed = hub.file_requests("model.safetensors")[-1]
    assert resumed.status == 206 and resumed.sent < WEIGHTS_BYTES
    stored = Path(lines[-1]["path"]) / "model.safetensors"
    assert stored.read_bytes() == (repository / "model.safetensors").read_bytes()


def stored(lines: list[dict[str, Any]]) -> set[str]:
    folder = Path(lines[-1]["path"])
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


@pytest.mark.parametrize(
    "weights",
    [
        ("model.safetensors-00001-of-00002.safetensors", "model.safetensors-00002-of-00002.safetensors"),
        ("model-00001-of-00001.safetensors", "mtp.safetensors"),
        ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"),
    ],
)
def test_the_generation_servers_model_is_taken_as_vllm_reads_it(
    hub: FakeHub, environment: dict[str, str], tmp_path: Path, weights: tuple[str, ...]
) -> None:
    folder = tmp_path / "generator"
    folder.mkdir()
    index = "model.safetensors.index.json" if weights[0].endswith(".safetensors") else "pytorch_model.bin.index.json"
    texts = {"config.json", "tokenizer_config.json", "qwen.tiktoken", index}
    for name in (*weights, *texts, "modeling_own.py", "README.md"):
        (folder / name).write_text(json.dumps({"weight_map": dict(enumerate(weights))}))
    hub.add(OTHER, folder)
    for extra, code in (({}, set()), ({"QMD_EXTRA_ARGS": "--trust-remote-code"}, {"modeling_own.py"})):
        status, lines = download([OTHER], environment | extra)
        assert status == 0, lines
        assert stored(lines) == {*weights, *texts, *code}
    hub.close()
    assert download([OTHER], environment)[0] == 0


def test_without_weights_of_vllm_the_sentence_names_its_setting(hub: FakeHub, environment: dict[str, str], repository: Path) -> None:
    for path in (*repository.glob("*.safetensors"), *repository.glob("*.bin")):
        path.unlink()
    hub.add(OTHER, repository)
    status, lines = download([OTHER], environment)
    assert status == 1
    assert "VLLM_MODEL=org/generator has no weights that vLLM reads" in lines[-1]["error"]


def test_a_download_for_generation_is_not_believed_for_embedding(hub: FakeHub, environment: dict[str, str], repository: Path) -> None:
    """Its pooling folder is not there, and another pooling gives other vectors."""
    hub.add(ID, repository)
    assert "1_Pooling/config.json" not in stored(download([ID], environment)[1])
    embeds = environment | {"EMBED_MODEL": ID}
    assert "1_Pooling/config.json" in stored(download([ID], embeds)[1])
    asked = len(hub.log)
    assert download([ID], embeds)[0] == 0
    assert len(hub.log) == asked
