"""`embed-service cache`: what lies there, and removing what is named and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from embed_service.models import cache as module
from tests.hub.conftest import WEIGHTS_BYTES, write_repository
from tests.hub.test_prefetch import download
from tests.support.hub import FakeHub
from tests.support.service import ROOT

ID, OTHER = "org/model", "org/other"


def cache(environment: Mapping[str, str], *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    keep = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-m", "embed_service", "cache", *arguments],
        cwd=ROOT, env={**keep, "DEVICE": "cpu", **environment}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def environment(hub: FakeHub, tmp_path: Path) -> dict[str, str]:
    return hub.environment(tmp_path / "home")


@pytest.fixture
def hub_folder(environment: dict[str, str]) -> Path:
    return Path(environment["HF_HOME"]) / "hub"


def test_an_empty_cache_is_no_fault(environment: dict[str, str]) -> None:
    status, (told,) = cache(environment)
    assert (status, told["revisions"], told["incomplete"]) == (0, [], [])
    assert told["free_bytes"] > 0


def test_two_revisions_one_goes_and_what_they_share_stays(
    hub: FakeHub, environment: dict[str, str], hub_folder: Path, repository: Path, tmp_path: Path
) -> None:
    first = hub.add(ID, repository)
    assert download([ID], environment)[0] == 0
    (repository / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 4}))  # the weights are the same
    second = hub.add(ID, repository)
    hub.add(OTHER, write_repository(tmp_path / "other", seed=1))
    assert download([f"{ID}@{second}", OTHER], environment)[0] == 0
    (hub_folder / "datasets--org--data/snapshots/abc").mkdir(parents=True)
    _, (told,) = cache(environment)
    rows = {(one["model"], one["revision"]): one for one in told["revisions"]}
    assert len(rows) == 3, "datasets are nobody's business here"
    assert rows[ID, first]["bytes"] > WEIGHTS_BYTES > 1000 > rows[ID, first]["own_bytes"]
    assert (rows[ID, first]["pinned"], rows[ID, second]["pinned"]) == (["main"], [second])
    assert all(one["complete"] for one in told["revisions"])

    status, (removed,) = cache(environment, "--remove", f"{ID}@{first}")
    assert (status, removed["revision"]) == (0, first)
    assert 0 < removed["freed_bytes"] < 1000
    snapshot = hub_folder / "models--org--model/snapshots" / second
    assert (snapshot / "model.safetensors").read_bytes() == (repository / "model.safetensors").read_bytes()
    record = json.loads((hub_folder / "embed-service-revisions.json").read_text())
    assert list(record[ID]) == [second]
    assert list(record[OTHER]) == ["main"]

    status, lines = cache(environment, "--remove", f"{ID}@{first}", "--remove", f"{ID}@{second}")
    assert status == 1, "the first is not there any more; the second goes all the same"
    assert "is not in the cache" in lines[0]["error"]
    assert lines[1]["freed_bytes"] > WEIGHTS_BYTES
    assert not (hub_folder / "models--org--model").exists()
    assert ID not in json.loads((hub_folder / "embed-service-revisions.json").read_text())


def test_what_an_unfinished_download_left_goes_unless_it_is_going_on(environment: dict[str, str], hub_folder: Path) -> None:
    blobs = hub_folder / "models--org--model/blobs"
    blobs.mkdir(parents=True)
    (blobs / "aa.embed-service.incomplete").write_bytes(bytes(1000))
    (blobs / "bb.0123abcd.incomplete").write_bytes(bytes(500))
    locks = hub_folder / ".locks/models--org--model"
    locks.mkdir(parents=True)
    _, (told,) = cache(environment)
    assert told["incomplete"] == [{"model": ID, "bytes": 1500, "files": 2}]
    with FileLock(locks / "aa.lock"):
        status, (line,) = cache(environment, "--incomplete", ID)
        assert (status, line["freed_bytes"]) == (1, 500)
        assert "is being downloaded" in line["error"]
        assert (blobs / "aa.embed-service.incomplete").exists()
    status, (line,) = cache(environment, "--incomplete", ID)
    assert (status, line["freed_bytes"]) == (0, 1000)
    assert not (hub_folder / "models--org--model").exists()


def test_a_damaged_folder_is_named_and_left(hub: FakeHub, environment: dict[str, str], hub_folder: Path, repository: Path) -> None:
    commit = hub.add(ID, repository)
    assert download([ID], environment)[0] == 0
    weights = (hub_folder / f"models--org--model/snapshots/{commit}/model.safetensors").resolve()
    weights.unlink()  # the link to it is left
    _, (told,) = cache(environment)
    assert [one["complete"] for one in told["revisions"]] == [False]
    status, (line,) = cache(environment, "--remove", f"{ID}@{commit}")
    assert status == 1
    assert "is damaged in the cache" in line["error"]
    assert "by hand" in line["error"]


def test_of_two_names_for_the_same_commit_the_other_stays(
    hub: FakeHub, environment: dict[str, str], hub_folder: Path, repository: Path
) -> None:
    """As after a rename at the hub."""
    commits = {hub.add(name, repository) for name in (ID, OTHER)}
    (commit,) = commits
    assert download([ID, OTHER], environment)[0] == 0
    for gone, left in ((OTHER, ID), (ID, None)):
        status, (told,) = cache(environment, "--remove", f"{gone}@{commit}")
        assert (status, told["model"]) == (0, gone)
        assert [one["model"] for one in cache(environment)[1][0]["revisions"]] == ([left] if left else [])


def test_a_download_that_ends_while_it_is_listed_is_no_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "models--org--model"
    (folder / "snapshots" / "c0ffee").mkdir(parents=True)
    gone = folder / "blobs" / "aa.incomplete"
    monkeypatch.setattr(module, "_partial", lambda folder: [gone])
    (folder / "snapshots" / "c0ffee" / "model.safetensors").symlink_to(gone)
    told = module.content(tmp_path)
    assert told["incomplete"] == [{"model": ID, "bytes": 0, "files": 1}]
    assert [one["bytes"] for one in told["revisions"]] == [0]
