"""What cannot be served is one sentence with the setting and the fix."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub.conftest import fake_disk, write_repository
from tests.hub.resolver import ROOT, resolve
from tests.support.hub import FakeHub

ID = "org/model"
TOKEN = "hf_secretSecretSecret"
PAIR = """
from concurrent.futures import ThreadPoolExecutor
from embed_service.errors import ModelError
from embed_service.models import hub
from embed_service.settings import Settings

def one(model):
    try:
        hub.download(hub.locate(model, None, Settings()), lambda done, total: None)
        return "resolved"
    except ModelError as error:
        return error.code

hub.quiet()
with ThreadPoolExecutor() as pool:
    print(*pool.map(one, ["org/model", "org/second"]), sep="\\n")
"""


@pytest.fixture
def environment(hub: FakeHub, tmp_path: Path) -> dict[str, str]:
    return {**hub.environment(tmp_path / "home"), "EMBED_MODEL": ID}


@pytest.mark.parametrize(
    ("model", "hint"), [("org/nothing", "correct EMBED_MODEL"), ("Qwen/Qwen3-Embeding-4B", "Did you mean Qwen/Qwen3-Embedding-4B?"),
                        ("a/b/c", "correct EMBED_MODEL"), ("no such model", "correct EMBED_MODEL")],
)  # fmt: skip
def test_unknown_id(hub: FakeHub, environment: dict[str, str], model: str, hint: str) -> None:
    failed = resolve(environment | {"EMBED_MODEL": model})
    assert (failed.code, failed.retryable) == ("not_found", False)
    assert f"EMBED_MODEL={model}" in failed.message and hint in failed.message


def test_unknown_revision(hub: FakeHub, environment: dict[str, str], repository: Path) -> None:
    hub.add(ID, repository)
    for revision in ("v9", "0" * 40):
        failed = resolve(environment | {"EMBED_REVISION": revision})
        assert failed.code == "not_found"
        assert revision in failed.message and "set EMBED_REVISION" in failed.message


def test_gated_without_a_token(hub: FakeHub, environment: dict[str, str], repository: Path) -> None:
    hub.add(ID, repository, gated=True)
    failed = resolve(environment)
    assert failed.code == "gated"
    assert f"accept its licence at {hub.url}/{ID}" in failed.message and "HF_TOKEN_FILE" in failed.message


def test_gated_with_a_token_that_has_no_access(hub: FakeHub, environment: dict[str, str], repository: Path) -> None:
    hub.add(ID, repository, gated=True)
    hub.tokens[TOKEN] = set()
    failed = resolve(environment | {"HF_TOKEN": TOKEN})
    assert failed.code == "gated"
    assert "the token of HF_TOKEN has no access" in failed.message
    assert TOKEN not in failed.output


@pytest.mark.parametrize("private", [False, True])
def test_a_granted_token_opens_the_model(
    hub: FakeHub, environment: dict[str, str], repository: Path, tmp_path: Path, private: bool
) -> None:
    commit = hub.add(ID, repository, gated=not private, private=private)
    hub.tokens[TOKEN] = {ID}
    secret = tmp_path / "token"
    secret.write_text(TOKEN + "\n")
    found = resolve(environment | {"HF_TOKEN_FILE": str(secret), "HF_TOKEN": "hf_notThisOne", "LOG_LEVEL": "debug"})
    assert found.revision == commit
    assert TOKEN not in found.output


def test_a_token_that_the_hub_refuses(hub: FakeHub, environment: dict[str, str], repository: Path, tmp_path: Path) -> None:
    hub.add(ID, repository)
    secret = tmp_path / "token"
    secret.write_text(TOKEN)
    failed = resolve(environment | {"HF_TOKEN_FILE": str(secret)})
    assert failed.code == "unauthorized"
    assert f"HF_TOKEN_FILE ({secret})" in failed.message and "put a new one" in failed.message
    assert TOKEN not in failed.output


def test_a_token_file_that_holds_something_else(environment: dict[str, str], tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text("my token is\nhf_x")
    failed = resolve(environment | {"HF_TOKEN_FILE": str(secret)})
    assert failed.code == "unauthorized" and "hf_x" not in failed.message


@pytest.mark.parametrize("content", [None, ""])
def test_an_unfilled_token_file_does_no_harm(
    hub: FakeHub, environment: dict[str, str], repository: Path, tmp_path: Path, content: str | None
) -> None:
    commit = hub.add(ID, repository)
    secret = tmp_path / "token"
    if content is not None:
        secret.write_text(content)
    assert resolve(environment | {"HF_TOKEN_FILE": str(secret)}).revision == commit


def test_hub_not_reachable(hub: FakeHub, environment: dict[str, str]) -> None:
    hub.close()
    failed = resolve(environment)
    assert (failed.code, failed.retryable) == ("offline", True)
    assert hub.url in failed.message and "check the network" in failed.message


def test_offline_by_setting(hub: FakeHub, environment: dict[str, str], repository: Path) -> None:
    hub.add(ID, repository)
    failed = resolve(environment | {"HF_HUB_OFFLINE": "1"})
    assert (failed.code, failed.retryable) == ("offline", False)
    assert "unset HF_HUB_OFFLINE" in failed.message
    assert hub.log == []


def test_pickled_weights_only(hub: FakeHub, environment: dict[str, str], repository: Path) -> None:
    (repository / "model.safetensors").unlink()
    (repository / "model.fp16.safetensors").unlink()
    hub.add(ID, repository)
    failed = resolve(environment)
    assert failed.code == "no_safetensors"
    assert "pickled weights" in failed.message and "set EMBED_MODEL" in failed.message
    assert hub.file_requests() == []
    assert resolve(environment | {"EMBED_MODEL": str(repository)}).code == "no_safetensors"


def test_no_room_on_the_disk(hub: FakeHub, environment: dict[str, str], repository: Path, full_disk: dict[str, str]) -> None:
    hub.add(ID, repository)
    failed = resolve(environment | full_disk)
    assert (failed.code, failed.retryable) == ("no_disk", True)
    assert "and 0.00 GB are free" in failed.message and "free some space" in failed.message
    assert hub.file_requests() == [], "nothing is downloaded that cannot be finished"


def test_a_cache_that_cannot_be_written(hub: FakeHub, environment: dict[str, str], repository: Path, tmp_path: Path) -> None:
    hub.add(ID, repository)
    (tmp_path / "home").write_text("a file where the folder should be")
    failed = resolve(environment)
    assert failed.code == "no_disk"
    assert str(tmp_path / "home") in failed.message and "HF_CACHE_DIR in the stack's .env, else HF_HOME" in failed.message


def test_two_models_must_fit_together(hub: FakeHub, repository: Path, tmp_path: Path) -> None:
    """The engine resolves both at once. A FAKE disk: 5 MB free, each model needs 3 MB."""
    hub.add(ID, repository)
    hub.add("org/second", write_repository(tmp_path / "second", seed=1))
    hub.bytes_per_second = 4_000_000
    environment = {**os.environ, **hub.environment(tmp_path / "home"), **fake_disk(tmp_path / "disk", 5_000_000)}
    done = subprocess.run([sys.executable, "-c", PAIR], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert sorted(done.stdout.splitlines()) == ["no_disk", "resolved"]
