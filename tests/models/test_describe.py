"""What the service reads out of a repository's files, and what it says of those that it cannot serve."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from embed_service.errors import ModelError
from embed_service.models.describe import describe
from embed_service.models.fingerprint import embedding_fingerprint
from embed_service.models.spec import ModelSpec, Role
from embed_service.settings import Settings
from embed_service.text.tokens import TextTokenizer
from tests.models import reference
from tests.support.checkpoints import checkpoint
from tests.support.service import minilm_path

Edit = Callable[[dict[str, Any]], object]


def spec_of(role: Role, folder: str | Path, embed_id: str = "another", **settings: Any) -> ModelSpec:
    return describe(role, str(folder), "local-0123456789ab", str(folder), Settings(device="cpu", **settings), embed_id)


@pytest.fixture
def copy(tmp_path: Path) -> Callable[..., Path]:
    """A checkpoint's copy with one of its JSON files edited."""

    def make(name: str, file: str = "config.json", edit: Edit = lambda content: None) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(minilm_path() if name == "minilm" else checkpoint(name), folder)
        path = folder / file
        content = json.loads(path.read_text()) if path.is_file() else {}
        edit(content)
        path.write_text(json.dumps(content))
        return folder

    return make


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "qwen3-embedding",
            {"architecture": "qwen3", "pooling": "last", "max_tokens": 8192, "vocabulary": 151_669, "instruct": True, "segments": False},
        ),
        (
            "nomic",
            {"architecture": "nomic_bert", "pooling": "mean", "max_tokens": 8192, "vocabulary": 30_528, "matryoshka_layer_norm": True},
        ),
        ("bge-base", {"architecture": "bert", "pooling": "cls", "max_tokens": 512, "segments": True, "instruct": False}),
        ("minilm", {"architecture": "bert", "pooling": "mean", "max_tokens": 256, "vocabulary": 30_522, "dimensions": 384}),
        ("distilbert", {"architecture": "distilbert", "pooling": None, "recognised": False, "max_tokens": 512}),
    ],
)
def test_embedding_models(name: str, expected: dict[str, Any]) -> None:
    folder = minilm_path() if name == "minilm" else checkpoint(name)
    spec = spec_of("embed", folder)
    assert spec.kind == "embedding"
    assert {"dimensions": 64, "recognised": True, **expected} == {
        field: getattr(spec, field) for field in {"dimensions", "recognised", *expected}
    }
    assert ModelSpec.from_wire(json.loads(json.dumps(spec.to_wire()))) == spec


def test_prompts() -> None:
    assert spec_of("embed", checkpoint("qwen3-embedding")).prompts == {
        "query": f"Instruct: {reference.INSTRUCTION}\nQuery:",
        "document": "",
    }
    assert spec_of("embed", checkpoint("nomic")).prompts == {"query": "search_query: ", "document": "search_document: "}
    assert spec_of("embed", checkpoint("bge-base")).prompts == {"query": "", "document": ""}


def test_prompts_of_the_repository_go_before_the_architectures(copy: Callable[..., Path]) -> None:
    own = {"query": "Find: ", "web": "Web: "}
    spec = spec_of("embed", copy("nomic", "config_sentence_transformers.json", lambda content: content.update(prompts=own)))
    assert spec.prompts == {"query": "Find: ", "document": "search_document: ", "web": "Web: "}


def test_rerankers() -> None:
    qwen3, seq_cls, llama = (spec_of("rerank", checkpoint(name)) for name in ("qwen3-reranker", "qwen3-reranker-seq-cls", "llama-chat"))
    assert (qwen3.kind, qwen3.yes_id, qwen3.no_id) == ("yes_no", 9693, 2152)
    assert (qwen3.template_prefix, qwen3.template_suffix, qwen3.template_instruction) == (
        reference.PREFIX,
        reference.SUFFIX,
        reference.INSTRUCTION,
    )
    assert seq_cls.kind == "classifier" and seq_cls.template_suffix == reference.SUFFIX
    assert llama.kind == "yes_no" and "<think>" not in llama.template_suffix and llama.template_prefix == reference.PREFIX
    bge, bert = spec_of("rerank", checkpoint("bge-reranker-base")), spec_of("rerank", checkpoint("bert-cross-encoder"))
    assert (bge.kind, bge.max_tokens, bge.segments, bge.template_prefix) == ("classifier", 512, False, "")
    assert (bert.kind, bert.max_tokens, bert.segments) == ("classifier", 512, True)
    assert spec_of("rerank", checkpoint("bge-reranker-v2-m3")).max_tokens == 8192


def test_the_embedding_model_as_reranker_is_cosine() -> None:
    spec = spec_of("rerank", minilm_path(), embed_id=minilm_path())
    assert (spec.role, spec.kind, spec.dimensions, spec.pooling) == ("rerank", "cosine", 384, "mean")


def test_max_input_tokens_lowers_the_limit() -> None:
    assert spec_of("embed", checkpoint("qwen3-embedding"), max_input_tokens=100).max_tokens == 100
    assert spec_of("embed", checkpoint("bge-base"), max_input_tokens=100_000).max_tokens == 512
    assert spec_of("embed", checkpoint("qwen3-embedding"), max_input_tokens=100_000).max_tokens == 32_768


def test_the_newer_spelling_of_pooling(copy: Callable[..., Path]) -> None:
    def rewrite(content: dict[str, Any]) -> None:
        content.clear()
        content.update(embedding_dimension=64, pooling_mode="mean", include_prompt=True)

    assert spec_of("embed", copy("bge-base", "1_Pooling/config.json", rewrite)).pooling == "mean"


@pytest.mark.parametrize(
    "edit",
    [
        lambda content: content.update(pooling_mode_cls_token=False, pooling_mode_max_tokens=True),
        lambda content: content.update(pooling_mode_mean_tokens=True),
    ],
    ids=["max", "two at once"],
)
def test_other_poolings_run_on_sentence_transformers(copy: Callable[..., Path], edit: Edit) -> None:
    spec = spec_of("embed", copy("bge-base", "1_Pooling/config.json", edit))
    assert not spec.recognised and spec.pooling is None
    assert spec.dimensions in (64, 128)


def test_added_tokens_past_the_table_are_plain_text(copy: Callable[..., Path]) -> None:
    """Qwen3-Embedding-4B and -8B: 151,665 rows, beside a tokeniser that may go up to 151,668 as that of the 0.6B does."""
    whole = TextTokenizer.load(spec_of("embed", checkpoint("qwen3-embedding")))
    spec = spec_of("embed", copy("qwen3-embedding", "config.json", lambda content: content.update(vocab_size=151_665)))
    assert spec.vocabulary == 151_665
    tokenizer = TextTokenizer.load(spec)
    texts = ["a plain text\n", "<tool_call> is kept", "<think>is not</think><tool_response>"]
    found, before = (t.texts(texts, max_tokens=99) for t in (tokenizer, whole))
    assert [t.ids.tolist() for t in found[:2]] == [t.ids.tolist() for t in before[:2]]
    assert before[2].ids.max() == 151_668
    assert found[2].ids[-1] == found[2].ids.max() == 151_643
    assert tokenizer.detokenize(found[2].ids.tolist(), skip_special_tokens=True) == texts[2]


@dataclass(frozen=True)
class Refused:
    """A checkpoint with one file changed: `change` edits its JSON, or says what happens to the file."""

    name: str
    role: Role
    code: str
    words: str
    file: str = "config.json"
    change: Edit | str = lambda content: None


REFUSED = [
    Refused("bge-reranker-base", "embed", "unsupported", "Set it as RERANK_MODEL instead"),
    Refused("qwen3-reranker", "embed", "unsupported", "generates text"),
    Refused("qwen3-embedding", "rerank", "unsupported", "embedding model, not a reranker"),
    Refused("minilm", "rerank", "unsupported", "rerank by cosine"),
    Refused("bge-reranker-base", "rerank", "unsupported", "3 labels", change=lambda c: c.update(id2label={"0": "a", "1": "b", "2": "c"})),
    Refused("bge-reranker-base", "rerank", "unsupported", "architecture mystery", change=lambda c: c.update(model_type="mystery")),
    Refused("nomic", "rerank", "unsupported", "neither", "modules.json", "delete"),
    Refused("bge-base", "embed", "unsupported", "quantised (fp8)", change=lambda c: c.update(quantization_config={"quant_method": "fp8"})),
    Refused("qwen3-embedding", "embed", "bad_files", "do not belong together", change=lambda c: c.update(vocab_size=1000)),
    Refused("qwen3-embedding", "embed", "bad_files", "has the id 151643", change=lambda c: c.update(vocab_size=151_643)),
    Refused("qwen3-reranker", "rerank", "bad_files", "has the id 151668", change=lambda c: c.update(vocab_size=151_665)),
    Refused("qwen3-embedding", "embed", "bad_files", "no tokenizer.json", "tokenizer.json", "delete"),
    Refused("qwen3-embedding", "embed", "bad_files", "tokenizer.json cannot be read", "tokenizer.json", "damage"),
    Refused("qwen3-embedding", "embed", "bad_files", "no config.json", "config.json", "delete"),
    Refused("qwen3-embedding", "embed", "bad_files", "config.json cannot be read", "config.json", "damage"),
    Refused("bge-base", "embed", "no_safetensors", "only pickled weights", "model.safetensors", "pickle"),
    Refused("bge-base", "embed", "no_safetensors", "no *.safetensors", "model.safetensors", "delete"),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: f"{case.name}: {case.words}")
def test_refused(copy: Callable[..., Path], case: Refused) -> None:
    folder = copy(case.name) if isinstance(case.change, str) else copy(case.name, case.file, case.change)
    file = folder / case.file
    if case.change == "delete":
        file.unlink()
    elif case.change == "damage":
        file.write_text("{")
    elif case.change == "pickle":
        file.rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError) as caught:
        spec_of(case.role, folder)
    assert caught.value.code == case.code and case.words in caught.value.message
    assert caught.value.message.startswith(f"{case.role.upper()}_MODEL={folder}")


def test_a_chat_model_without_the_template_tokens_cannot_judge(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint("llama-chat"), folder)
    shutil.copyfile(Path(minilm_path()) / "tokenizer.json", folder / "tokenizer.json")
    with pytest.raises(ModelError, match=r"<\|im_start\|>"):
        spec_of("rerank", folder)


def test_describing_reads_no_weights_and_no_torch() -> None:
    import subprocess

    program = (
        "import sys; from embed_service.models.describe import describe; from embed_service.settings import Settings; "
        "path = sys.argv[1]; describe('embed', path, 'local-0', path, Settings(), 'x'); "
        "assert not {'torch', 'transformers', 'safetensors'} & set(sys.modules), 'heavy imports'"
    )
    subprocess.run([sys.executable, "-c", program, minilm_path()], check=True, timeout=60)


def test_fingerprint() -> None:
    spec = spec_of("embed", minilm_path())
    seen = embedding_fingerprint(spec, "native")
    assert len(seen) == 12 and int(seen, 16) >= 0
    assert embedding_fingerprint(ModelSpec.from_wire(spec.to_wire()), "native") == seen
    changed = [
        {"revision": "local-other"},
        {"pooling": "cls"},
        {"dimensions": 128},
        {"max_tokens": 512},
        {"quantization": "int8"},
        {"prompts": {"query": "q: ", "document": ""}},
        {"revision": "a" * 40, "id": "x/model"},
        {"revision": "a" * 40, "id": "y/model"},
    ]
    others = [embedding_fingerprint(ModelSpec.from_wire({**spec.to_wire(), **fields}), "native") for fields in changed]
    assert len({seen, embedding_fingerprint(spec, "raw"), *others}) == len(changed) + 2
    # A folder that was moved is still the same model.
    assert embedding_fingerprint(ModelSpec.from_wire({**spec.to_wire(), "id": "/elsewhere", "path": "/elsewhere"}), "native") == seen
