"""SmolLM2 as a repository that servers of either transformers can read."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from safetensors import safe_open

from demo.smollm2 import prepare


def test_the_repository_is_complete_and_readable_by_others(smollm2: Path) -> None:
    names = {file.name for file in smollm2.iterdir()}
    assert {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    } <= names
    assert all(stat.S_IMODE(file.stat().st_mode) & 0o044 == 0o044 for file in smollm2.iterdir())
    assert stat.S_IMODE(smollm2.stat().st_mode) & 0o055 == 0o055


def test_the_weights_are_bfloat16(smollm2: Path) -> None:
    with safe_open(smollm2 / "model.safetensors", "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"BF16"}  # noqa: SIM118 (not a mapping)


def test_what_readers_of_transformers_4_need(smollm2: Path) -> None:
    config = json.loads((smollm2 / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 100_000
    assert "quantization_config" not in config
    assert json.loads((smollm2 / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "<|im_start|>" in (smollm2 / "chat_template.jinja").read_text()


def test_a_second_call_makes_nothing(smollm2: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in smollm2.iterdir()}
    assert prepare() == smollm2
    assert {file: file.stat().st_mtime_ns for file in smollm2.iterdir()} == before


@pytest.mark.slow
def test_an_unfinished_folder_is_replaced(tmp_path: Path) -> None:
    unfinished = tmp_path / "smollm2-135m-instruct"
    unfinished.mkdir()
    (unfinished / "model.safetensors").write_text("half")
    assert prepare(tmp_path) == unfinished
    assert (unfinished / "model.safetensors").stat().st_size > 200_000_000
    assert [entry.name for entry in tmp_path.iterdir()] == [unfinished.name]
