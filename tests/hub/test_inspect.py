"""`embed-service inspect`: what a model is and what it would take, without a byte of its weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.hub.conftest import fake_disk, write_repository
from tests.support.checkpoints import checkpoint
from tests.support.hub import FakeHub
from tests.support.service import ROOT

# Several questions in one process: huggingface_hub takes a second to import.
MANY = """
import json, sys
from embed_service.models.inspect import main
from embed_service.settings import load_settings
for role, name, newest in json.loads(sys.argv[1]):
    main(name, role, load_settings(), newest=newest)
"""


def ask(questions: list[tuple[str, str]], environment: Mapping[str, str], *, newest: bool = False) -> list[dict[str, Any]]:
    """The answer to each (role, MODEL[@REVISION])."""
    keep = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    argument = json.dumps([(role, name, newest) for role, name in questions])
    done = subprocess.run(
        [sys.executable, "-c", MANY, argument],
        cwd=ROOT,
        env={**keep, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def environment(hub: FakeHub, tmp_path: Path) -> dict[str, str]:
    return hub.environment(tmp_path / "home")


def test_what_a_model_is_before_its_weights(hub: FakeHub, environment: dict[str, str], minilm: str) -> None:
    commit = hub.add("org/minilm", Path(minilm))
    hub.add("org/reranker", checkpoint("qwen3-reranker"))
    hub.add("org/chat", checkpoint("qwen3-chat"))
    embed, rerank, chat = ask([("embed", "org/minilm"), ("rerank", "org/reranker"), ("generate", "org/chat")], environment)
    assert (embed["revision"], embed["where"], embed["architecture"], embed["kind"]) == (commit, "hub", "bert", "embedding")
    assert embed["dimensions"] == embed["config"]["hidden_size"] == 384
    assert embed["missing_bytes"] > 80_000_000 and len(embed["fingerprint"]) == 12
    assert (rerank["kind"], chat["kind"]) == ("yes_no", "generation")
    assert "fingerprint" not in rerank
    assert hub.file_requests(".safetensors") == []


def test_what_cannot_serve_is_refused_with_the_setting_that_would_name_it(
    hub: FakeHub, environment: dict[str, str], minilm: str, tmp_path: Path
) -> None:
    hub.add("org/minilm", Path(minilm))
    hub.add("org/gated", Path(minilm), gated=True)
    pickled = write_repository(tmp_path / "pickled")
    for name in ("model.safetensors", "model.fp16.safetensors"):
        (pickled / name).unlink()
    hub.add("org/pickled", pickled)
    odd = write_repository(tmp_path / "odd")
    (odd / "config.json").write_text(json.dumps({"model_type": "mamba", "architectures": ["MambaForSequenceClassification"]}))
    for name in ("modules.json", "1_Pooling/config.json"):
        (odd / name).unlink()
    (odd / "tokenizer.json").write_text((checkpoint("bge-base") / "tokenizer.json").read_text())
    hub.add("org/odd", odd)
    questions = [
        ("embed", "org/nothing"),
        ("embed", "org/minilm@v9"),
        ("generate", "org/gated"),
        ("embed", "org/pickled"),
        ("generate", "org/pickled"),
        ("rerank", "org/minilm"),
        ("generate", "org/minilm"),
        ("rerank", "org/odd"),
    ]
    told = ask(questions, environment)
    assert [one["code"] for one in told] == [
        "not_found", "not_found", "gated", "no_safetensors", "no_safetensors", "unsupported", "unsupported", "unsupported",
    ]  # fmt: skip
    sentences = [one["error"] for one in told]
    assert sentences[0].startswith("EMBED_MODEL=org/nothing is not a model of ")
    assert "no revision 'v9'" in sentences[1]
    assert (
        sentences[2].startswith("VLLM_MODEL=org/gated is gated")
        and "HF_TOKEN_FILE" in sentences[2]
        and f"{hub.url}/org/gated" in sentences[2]
    )
    assert all("pickled weights" in sentence and "can run code" in sentence for sentence in sentences[3:5])
    assert "is an embedding model, not a reranker" in sentences[5]
    assert "does not generate text" in sentences[6]
    assert "architecture mamba" in sentences[7] and "these are:" in sentences[7]
    assert hub.file_requests(".safetensors") == []


def test_a_disk_too_small_is_told_with_its_numbers(hub: FakeHub, environment: dict[str, str], minilm: str, tmp_path: Path) -> None:
    hub.add("org/minilm", Path(minilm))
    (told,) = ask([("embed", "org/minilm")], environment | fake_disk(tmp_path / "disk", 50_000_000))
    assert told["code"] == "no_disk"
    assert "0.05 GB are free" in told["error"]


def test_a_bare_name_keeps_its_commit_and_newest_takes_the_hubs(hub: FakeHub, environment: dict[str, str], tmp_path: Path) -> None:
    first = hub.add("org/chat", checkpoint("qwen3-chat"))
    keep = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    download = [sys.executable, "-m", "embed_service", "download", "org/chat"]
    subprocess.run(download, cwd=ROOT, env={**keep, "DEVICE": "cpu", **environment}, capture_output=True, timeout=60, check=True)
    second = hub.add("org/chat", checkpoint("llama-chat"))
    assert first != second
    (kept,) = ask([("generate", "org/chat")], environment)
    (newest,) = ask([("generate", "org/chat@main")], environment, newest=True)
    assert (kept["revision"], kept["where"], kept["missing_bytes"]) == (first, "cache", 0)
    assert (newest["revision"], newest["where"], newest["architecture"]) == (second, "hub", "llama")
    (still,) = ask([("generate", "org/chat")], environment)
    assert still["revision"] == first, "a look pins nothing"
    hub.close()
    (offline,) = ask([("generate", "org/chat@main")], environment, newest=True)
    assert offline["code"] == "offline"
