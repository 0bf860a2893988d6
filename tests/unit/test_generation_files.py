"""The generation server's files: the downloader of the embed image and that of vLLM's image choose the same ones."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embed_service.models import generation

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
NAMES = (
    "config.json", "params.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json", "merges.txt",
    "qwen.tiktoken", "chat_template.jinja", "model.safetensors", *SHARDS, "model.safetensors-00001-of-00002.safetensors",
    "model.safetensors-00002-of-00002.safetensors", "model-00001-of-000163.safetensors", "mtp.safetensors", "consolidated.safetensors",
    "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin",
    "pytorch_model.bin.index.json", "training_args.bin", "modeling_own.py", "model.gguf", "README.md", "onnx/model.onnx", "original/x.pth",
    "1_Pooling/config.json", ".gitattributes",
)  # fmt: skip
listings = st.sets(st.sampled_from(NAMES))
indexes = st.sets(st.sampled_from([name for name in NAMES if name.endswith(".safetensors")]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("listings")


@given(names=listings, shards=indexes, code=st.booleans())
def test_both_choose_the_same(vllm: dict[str, ModuleType], names: set[str], shards: set[str], code: bool) -> None:
    ours = generation.choose(names, shards, code=code)
    assert ours == vllm["download"].choose(names, shards, code=code)
    assert set(ours) <= names
    assert code or not any(name.endswith(".py") for name in ours)
    if shards and shards <= names:
        assert {name for name in ours if name.endswith(".safetensors")} == shards


@given(names=listings, shards=indexes, code=st.booleans())
def test_both_believe_the_same_folders(vllm: dict[str, ModuleType], folder: Path, names: set[str], shards: set[str], code: bool) -> None:
    for path in folder.iterdir():
        path.unlink()
    for name in names:
        if "/" not in name:
            (folder / name).write_text(json.dumps({"weight_map": dict(enumerate(sorted(shards)))}) if "index" in name else "")
    assert generation.suffices(folder, code=code) == vllm["download"].suffices(folder, code=code)


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (["tokenizer_config.json", "model.safetensors"], "the vocabulary"),
        (["tokenizer.json"], "the weights"),
        (["tokenizer.json", "model.safetensors.index.json", SHARDS[0]], "a shard"),
        (["tokenizer.json", "training_args.bin"], "weights that vLLM reads"),
    ],
)
def test_a_folder_that_lacks_something_is_not_believed(tmp_path: Path, names: list[str], missing: str) -> None:
    for name in names:
        (tmp_path / name).write_text(json.dumps({"weight_map": dict(enumerate(SHARDS))}) if "index" in name else "")
    assert not generation.suffices(tmp_path, code=False), missing


@pytest.mark.parametrize(
    ("arguments", "told"),
    [("--seed 7 --trust-remote-code", True), ("--trust_remote_code", True), ("", False), ("--seed 7", False)],
)
def test_both_know_whether_code_is_run(vllm: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, arguments: str, told: bool) -> None:
    monkeypatch.setenv("QMD_EXTRA_ARGS", arguments)
    assert generation.runs_code() == vllm["arguments"].runs_code(os.environ) == told
