"""`embed-service check`: what would stop the service, before it is started."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.hub.conftest import fake_disk
from tests.support.hub import FakeHub
from tests.support.service import ROOT

ID = "org/minilm"


def check(environment: Mapping[str, str]) -> tuple[int, list[str]]:
    """Exit status and the lines printed."""
    keep = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-m", "embed_service", "check"], cwd=ROOT, env={**keep, "DEVICE": "cpu", **environment},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


@pytest.fixture
def environment(hub: FakeHub, tmp_path: Path, minilm: str) -> dict[str, str]:
    hub.add(ID, Path(minilm))
    return {**hub.environment(tmp_path / "home"), "EMBED_MODEL": ID, "RERANK_MODEL": ID}


def test_all_is_well_without_a_download_of_weights(hub: FakeHub, environment: dict[str, str]) -> None:
    status, lines = check(environment)
    assert status == 0
    assert [line.split(":")[0] for line in lines] == ["ok    EMBED_MODEL", "ok    RERANK_MODEL", "ok    HF_HOME", "ok    DEVICE"]
    assert "bert, embedding" in lines[0] and "to be downloaded, 0.09 GB" in lines[0]
    assert "reranks by cosine" in lines[1]
    assert hub.file_requests(".safetensors") == []


def test_every_finding_is_listed(environment: dict[str, str], minilm: str) -> None:
    status, lines = check(environment | {"EMBED_MODEL": "org/nothing", "RERANK_MODEL": minilm, "DEVICE": "mps"})
    assert status == 3
    assert [line.split(":")[0] for line in lines] == ["FAIL  EMBED_MODEL", "FAIL  RERANK_MODEL", "FAIL  DEVICE"]
    assert "correct EMBED_MODEL" in lines[0]
    assert "is an embedding model, not a reranker" in lines[1]
    assert "set DEVICE=auto" in lines[2]


def test_each_model_fits_but_not_both(hub: FakeHub, environment: dict[str, str], minilm: str, tmp_path: Path) -> None:
    reranker = tmp_path / "reranker"
    for file in Path(minilm).iterdir():
        if file.is_file() and file.name not in ("modules.json", "config_sentence_transformers.json"):
            (reranker / file.name).parent.mkdir(exist_ok=True)
            (reranker / file.name).symlink_to(file)
    (reranker / "config.json").unlink()
    text = (Path(minilm) / "config.json").read_text()
    (reranker / "config.json").write_text(
        text.replace("BertModel", "BertForSequenceClassification").replace('"model_type"', '"id2label": {"0": "LABEL_0"}, "model_type"')
    )
    hub.add("org/reranker", reranker)
    disk = fake_disk(tmp_path / "disk", 150_000_000)  # each needs 95 MB
    status, lines = check(environment | {"RERANK_MODEL": "org/reranker"} | disk)
    assert status == 3
    assert [line.split(":")[0] for line in lines] == ["ok    EMBED_MODEL", "ok    RERANK_MODEL", "FAIL  HF_HOME", "ok    DEVICE"]
    assert f"EMBED_MODEL={ID} with RERANK_MODEL=org/reranker needs 0.19 GB more" in lines[2]
