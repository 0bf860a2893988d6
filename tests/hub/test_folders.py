"""A model in a folder: found, refused, and told apart by its content."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from embed_service.errors import ModelError
from embed_service.models.files import choose
from embed_service.models.hub import ResolvedRepository, download, locate
from embed_service.settings import Settings
from tests.hub.conftest import write_repository


def resolve_folder(path: str | Path) -> ResolvedRepository:
    calls: list[object] = []
    found = download(locate(str(path), None, Settings(embed_model=str(path))), lambda *bytes_: calls.append(bytes_))
    assert calls == []
    return found


def test_a_folder_is_served_as_it_is(repository: Path) -> None:
    found = resolve_folder(repository)
    assert (found.id, found.path) == (str(repository), str(repository))
    assert re.fullmatch(r"local-[0-9a-f]{12}", found.revision)


def test_the_revision_is_the_content_not_the_place(repository: Path, tmp_path: Path) -> None:
    first = resolve_folder(repository).revision
    copy = shutil.copytree(repository, tmp_path / "copy")
    assert resolve_folder(copy).revision == first
    (copy / "README.md").write_text("other words")
    assert resolve_folder(copy).revision == first, "files that are not served do not count"
    (copy / "1_Pooling/config.json").write_text('{"pooling_mode_cls_token": true}')
    assert resolve_folder(copy).revision != first


def test_other_weights_of_the_same_shape_are_another_revision(repository: Path, tmp_path: Path) -> None:
    other = write_repository(tmp_path / "other", seed=1)
    assert resolve_folder(other).revision != resolve_folder(repository).revision


def test_relative_and_home_folders(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository.parent)
    monkeypatch.setenv("HOME", str(repository.parent))
    for spelling in ("./repository", "repository", "~/repository"):
        assert resolve_folder(spelling).path == str(repository)


@pytest.mark.parametrize("path", ["/no/such/folder", "./missing", "~/missing"])
def test_a_missing_folder(path: str) -> None:
    with pytest.raises(ModelError, match=rf"EMBED_MODEL={path} is not a folder.*correct EMBED_MODEL") as raised:
        resolve_folder(path)
    assert raised.value.code == "not_found"


SINGLE = ["model.safetensors", "model.safetensors.index.json"]
DENSE = ["2_Dense/config.json", "2_Dense/model.safetensors"]
TOKENIZER = ["chat_template.jinja", "merges.txt", "sentencepiece.bpe.model"]


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ([*SINGLE, "model-00001-of-00002.safetensors"], SINGLE),
        (["consolidated.safetensors", "adapter_model.safetensors", "model-00001-of-00002.safetensors"], []),
        ([*DENSE, "2_Dense/pytorch_model.bin"], DENSE),
        (["openvino/config.json", "onnx/tokenizer.json", "a/b/c.json", ".gitattributes", "x.py", "x.pt", "x.h5", "x.msgpack"], []),
        (TOKENIZER, TOKENIZER),
    ],
)
def test_choice_of_files(names: list[str], chosen: list[str]) -> None:
    assert choose(names) == chosen
