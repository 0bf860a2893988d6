"""A fake hub, and a small repository for the tests that load nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.support.hub import FakeHub

WEIGHTS_BYTES = 3_000_000


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as fake:
        yield fake


def write_repository(folder: Path, *, seed: int = 0, weights: str = "model.safetensors") -> Path:
    """The files of a sentence-transformers repository, with what must never be fetched beside them. Not a model that loads."""
    values = np.random.default_rng(seed).random(WEIGHTS_BYTES // 4, np.float32)
    for name, fields in {
        "config.json": {"model_type": "bert", "vocab_size": 3},
        "modules.json": [{"idx": 0, "path": "", "type": "Transformer"}, {"idx": 1, "path": "1_Pooling", "type": "Pooling"}],
        "1_Pooling/config.json": {"pooling_mode_mean_tokens": True},
        "tokenizer.json": {"model": {"vocab": {"[UNK]": 0}}},
        "onnx/config.json": {},
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(fields))
    save_file({"weight": values}, folder / weights)
    (folder / "vocab.txt").write_text("[UNK]\n")
    for unwanted in ("pytorch_model.bin", "modeling.py", "onnx/model.onnx", "README.md", "model.fp16.safetensors"):
        (folder / unwanted).write_bytes(os.urandom(100))
    return folder


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return write_repository(tmp_path / "repository")


def fake_disk(folder: Path, free_bytes: int) -> dict[str, str]:
    """A FAKE of a small disk for the processes that get this environment: shutil.disk_usage says so many bytes are free."""
    folder.mkdir()
    usage = f"shutil._ntuple_diskusage({10**12}, 0, {free_bytes})"
    (folder / "sitecustomize.py").write_text(f"import shutil\nshutil.disk_usage = lambda path: {usage}\n")
    return {"PYTHONPATH": str(folder)}


@pytest.fixture
def full_disk(tmp_path: Path) -> dict[str, str]:
    return fake_disk(tmp_path / "full-disk", 1)
