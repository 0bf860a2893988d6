"""Files from the fake hub onto the disk: what is fetched, resumed, verified and recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.hub.conftest import WEIGHTS_BYTES, write_repository
from tests.hub.resolver import Resolver, resolve
from tests.support.hub import FakeHub

ID = "org/model"
WANTED = {"1_Pooling/config.json", "config.json", "model.safetensors", "modules.json", "tokenizer.json", "vocab.txt"}


@pytest.fixture
def environment(hub: FakeHub, tmp_path: Path) -> dict[str, str]:
    return {**hub.environment(tmp_path / "home"), "EMBED_MODEL": ID}


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def same(path: Path, repository: Path) -> bool:
    return files_of(path) == {name: (repository / name).read_bytes() for name in WANTED}


def test_takes_what_serving_needs_and_nothing_else(hub: FakeHub, environment: dict[str, str], repository: Path) -> None:
    commit = hub.add(ID, repository)
    found = resolve(environment)
    assert found.revision == commit
    assert same(found.path, repository)
    assert {entry.path.split(f"{commit}/")[1] for entry in hub.file_requests()} == WANTED
    assert found.imported == []


def test_progress_counts_bytes_up_to_the_total(hub: FakeHub, environment: dict[str, str], repository: Path) -> None:
    hub.add(ID, repository)
    hub.bytes_per_second = 4_000_000
    found = resolve(environment)
    done = [at for at, _ in found.progress]
    total = sum((repository / name).stat().st_size for name in WANTED)
    assert {of for _, of in found.progress} == {total}
    assert done == sorted(done) and done[0] == 0 and done[-1] == total
    assert len([at for at in done if 0 < at < total]) >= 2


def test_starts_from_the_cache_with_the_hub_switched_off(hub: FakeHub, environment: dict[str, str], repository: Path) -> None:
    hub.add(ID, repository)
    first = resolve(environment)
    asked = len(hub.log)
    again = resolve(environment)
    assert (again.path, again.progress, len(hub.log)) == (first.path, [], asked)
    hub.close()
    for extra in ({}, {"HF_HUB_OFFLINE": "1"}, {"EMBED_REVISION": first.revision}):
        assert resolve(environment | extra).path == first.path


def test_goes_on_after_the_connection_was_cut(hub: FakeHub, environment: dict[str, str], repository: Path) -> None:
    hub.add(ID, repository)
    hub.cut_after = 1_000_000
    found = resolve(environment)
    assert same(found.path, repository)
    first, second = hub.file_requests("model.safetensors")
    assert (first.range, second.range) == (None, "bytes=1000000-")
    assert first.sent + second.sent == (repository / "model.safetensors").stat().st_size


def test_goes_on_after_the_process_was_killed(hub: FakeHub, environment: dict[str, str], repository: Path) -> None:
    hub.add(ID, repository)
    hub.bytes_per_second = 2_000_000
    killed = Resolver(environment)
    killed.wait_for_bytes(1_000_000)
    killed.kill()
    hub.bytes_per_second = None
    found = resolve(environment)
    assert same(found.path, repository)
    assert found.progress[0][0] >= 900_000, "what was there counts as done from the start"
    (resumed,) = [entry for entry in hub.file_requests("model.safetensors") if entry.status == 206]
    assert resumed.sent <= WEIGHTS_BYTES - 900_000


def test_begins_anew_where_the_server_ignores_ranges(hub: FakeHub, environment: dict[str, str], repository: Path) -> None:
    hub.add(ID, repository)
    hub.cut_after, hub.ignore_ranges = 1_000_000, True
    assert same(resolve(environment).path, repository)
    assert [entry.status for entry in hub.file_requests("model.safetensors")] == [200, 200]


def test_waits_out_a_hub_that_fails_for_a_moment(hub: FakeHub, environment: dict[str, str], repository: Path) -> None:
    hub.add(ID, repository)
    hub.failures = 3
    assert same(resolve(environment).path, repository)
    assert sum(entry.status == 503 for entry in hub.log) == 3


def test_damaged_bytes_are_never_kept(hub: FakeHub, environment: dict[str, str], repository: Path) -> None:
    hub.add(ID, repository)
    hub.corrupt = 1
    failed = resolve(environment)
    assert (failed.code, failed.retryable) == ("bad_files", True)
    assert "model.safetensors" in failed.message
    assert same(resolve(environment).path, repository)


def test_a_branch_that_moves_changes_nothing_until_asked(
    hub: FakeHub, environment: dict[str, str], repository: Path, tmp_path: Path
) -> None:
    old = hub.add(ID, repository)
    first = resolve(environment)
    new = hub.add(ID, write_repository(tmp_path / "new", seed=1))
    assert resolve(environment).revision == old != new
    (first.path / "model.safetensors").resolve().unlink()
    mended = resolve(environment)
    assert mended.revision == old and same(mended.path, repository), "lost files are fetched again at the pinned commit"
    asked = resolve(environment | {"EMBED_REVISION": new})
    assert asked.revision == new and same(asked.path, tmp_path / "new")
    assert resolve(environment).revision == old


def test_a_branch_and_a_tag_can_be_asked_for(hub: FakeHub, environment: dict[str, str], repository: Path, tmp_path: Path) -> None:
    hub.add(ID, repository)
    tagged = hub.add(ID, write_repository(tmp_path / "v1", seed=1), branch="v1")
    assert resolve(environment | {"EMBED_REVISION": "v1"}).revision == tagged


def test_a_file_of_the_wrong_size_is_fetched_again(hub: FakeHub, environment: dict[str, str], repository: Path) -> None:
    hub.add(ID, repository)
    weights = resolve(environment).path / "model.safetensors"
    weights.resolve().write_bytes(b"short")
    assert same(resolve(environment).path, repository)


def test_two_starts_at_once_share_one_download(hub: FakeHub, environment: dict[str, str], repository: Path, tmp_path: Path) -> None:
    hub.add(ID, repository)
    hub.add("org/other", write_repository(tmp_path / "other", seed=1))
    hub.bytes_per_second = 3_000_000
    running = [Resolver(environment | {"EMBED_MODEL": model}) for model in (ID, ID, "org/other")]
    paths = [process.finish().path for process in running]
    assert paths[0] == paths[1] and same(paths[0], repository)
    assert len(hub.file_requests("model.safetensors")) == 2, "one download for each repository"
    record = json.loads(next(tmp_path.glob("home/hub/*.json")).read_text())
    assert set(record) == {ID, "org/other"}


def test_shards_are_taken_with_their_index(hub: FakeHub, environment: dict[str, str], tmp_path: Path) -> None:
    folder = write_repository(tmp_path / "shards", weights="model-00001-of-00002.safetensors")
    write_repository(folder, seed=1, weights="model-00002-of-00002.safetensors")
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict(zip("ab", names, strict=True))}))
    hub.add(ID, folder)
    assert {p.name for p in resolve(environment).path.glob("*.safetensors*")} == {*names, "model.safetensors.index.json"}


def test_a_cache_that_another_program_filled_is_served_without_the_hub(
    hub: FakeHub, environment: dict[str, str], repository: Path, tmp_path: Path
) -> None:
    commit = hub.add(ID, repository)
    path = resolve(environment).path
    next(tmp_path.glob("home/hub/*.json")).unlink()
    refs = path.parent.parent / "refs"
    refs.mkdir()
    (refs / "main").write_text(commit)
    offline = environment | {"HF_HUB_OFFLINE": "1"}
    assert resolve(offline).revision == commit
    (path / "1_Pooling/config.json").unlink()
    assert resolve(offline).code == "offline", "without its pooling the model would give other vectors"
