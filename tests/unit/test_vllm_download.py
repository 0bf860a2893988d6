"""The vLLM container's download: what it takes, what it believes of the disk, and how it gets over a network that breaks."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from filelock import FileLock
from safetensors.numpy import save_file

from tests.support.hub import FakeHub
from tests.support.service import ROOT, poll
from tests.unit.test_vllm_start import probe, start

ID = "org/model"
BREAK_AT = 12_000_000  # above the 10 MB that huggingface_hub writes at once
# start.py as the container runs it, with a shorter first pause, up to the point where it would become vLLM.
PROGRAM = """
import sys
import start
start.FIRST_RETRY_SECONDS = 0.5
start.become = lambda command: sys.exit(print(command[2]))
sys.exit(start.main([]))
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    save_file({"weight": np.random.default_rng(0).random(6_000_000, np.float32)}, folder / "model.safetensors")
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    return folder


@contextmanager
def running(hub: FakeHub, home: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """The process and the file of its log."""
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": str(ROOT / "vllm"), "QMD_MODEL": ID,
        "QMD_PHASE_FILE": str(home / "phase.json"), "QMD_WAIT_FOR_EMBED_SECONDS": "0", "HF_HUB_DOWNLOAD_TIMEOUT": "1",
    }  # fmt: skip
    log = home / "log"
    with log.open("w") as out:
        command = [sys.executable, "-c", PROGRAM]
        process = subprocess.Popen(command, env={**environment, **hub.environment(home)}, stdout=subprocess.PIPE, stderr=out, text=True)
        try:
            yield process, log
        finally:
            process.kill()
            process.communicate()


def test_a_network_that_breaks_is_a_download_that_stalls_and_goes_on(repository: Path, tmp_path: Path) -> None:
    with FakeHub() as hub:
        commit = hub.add(ID, repository)
        hub.break_after = BREAK_AT
        with running(hub, tmp_path) as (process, log):
            poll(lambda: log.read_text().count("next try in") >= 2, 60, "two tries")
            first = probe(tmp_path, None)[0]
            assert (first["status"], first["phase"]) == ("loading", "downloading")
            assert 0 < first["done_bytes"] < first["total_bytes"]
            assert first["total_bytes"] == sum(file.stat().st_size for file in repository.iterdir())
            assert first["stalled_seconds"] > 0
            poll(lambda: probe(tmp_path, None)[0]["stalled_seconds"] > first["stalled_seconds"], 10, "a stall that grows over the tries")
            assert "cannot be used" in log.read_text(), "the cause is logged"
            hub.mend()
            out, _ = process.communicate(timeout=60)
        assert process.returncode == 0, log.read_text()
        assert "Traceback" not in log.read_text()
        assert out.strip() == str(tmp_path / "hub/models--org--model/snapshots" / commit)
        assert (Path(out.strip()) / "model.safetensors").read_bytes() == (repository / "model.safetensors").read_bytes()


def test_a_hub_that_was_never_reached_is_an_error(tmp_path: Path) -> None:
    with FakeHub() as hub:
        hub.broken = True
        with running(hub, tmp_path) as (_, log):
            poll(lambda: "next try in" in log.read_text(), 60, "a try")
            line = probe(tmp_path, None)[0]
    assert line["status"] == "error"
    assert "check the network" in line["error"]


def download(hub: FakeHub, home: Path, **environment: str) -> Path:
    """The folder that `start.py download` prints."""
    done = start(hub, home, ID, **environment)
    assert done.returncode == 0, done.stderr
    return Path(done.stderr.strip().splitlines()[-1].removeprefix("qmd-vllm: downloaded: "))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def forget(home: Path, *files: str) -> None:
    """Record the download as it were without these files, and remove them, as another rule would have left it."""
    path = home / "hub/embed-service-revisions.json"
    record = json.loads(path.read_text())
    for name in files:
        del record[ID]["main"]["files"][name]
        (home / "hub/models--org--model/snapshots" / record[ID]["main"]["commit"] / name).unlink()
    path.write_text(json.dumps(record))


def add_shards(folder: Path, *shards: str) -> None:
    (folder / "model.safetensors").unlink(missing_ok=True)
    for number, name in enumerate(shards):
        save_file({f"weight{number}": np.full(10, number, np.float32)}, folder / name)
    index = {"weight_map": {f"weight{number}": name for number, name in enumerate(shards)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    "shards",
    [
        ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
        ("model.safetensors-00001-of-00002.safetensors", "model.safetensors-00002-of-00002.safetensors"),
        ("model-00001-of-00001.safetensors", "mtp.safetensors"),
        ("model-00001-of-000002.safetensors", "model-00002-of-000002.safetensors"),
    ],
)
def test_the_shards_that_the_index_names_are_taken_and_no_others(tmp_path: Path, repository: Path, shards: tuple[str, ...]) -> None:
    add_shards(repository, *shards)
    (repository / "consolidated.safetensors").write_bytes(b"another set")
    with FakeHub() as hub:
        hub.add(ID, repository)
        found = download(hub, tmp_path)
    assert names(found) == {"config.json", "tokenizer.json", "model.safetensors.index.json", *shards}


@pytest.mark.parametrize("lost", ["tokenizer.json", "model.safetensors", "model-00002-of-00002.safetensors"])
def test_a_record_of_too_little_is_not_believed(tmp_path: Path, repository: Path, lost: str) -> None:
    if lost.startswith("model-"):
        add_shards(repository, "model-00001-of-00002.safetensors", lost)
    (repository / "tokenizer_config.json").write_text("{}")
    with FakeHub() as hub:
        hub.add(ID, repository)
        assert lost in names(download(hub, tmp_path))
        forget(tmp_path, lost)
        assert lost in names(download(hub, tmp_path))
        asked = len(hub.log)
        download(hub, tmp_path)
        assert len(hub.log) == asked, "the new record is whole"


def test_code_is_taken_where_vllm_is_told_to_run_it(tmp_path: Path, repository: Path) -> None:
    (repository / "modeling_own.py").write_text("")
    trusting = {"QMD_EXTRA_ARGS": "--seed 7 --trust-remote-code"}
    with FakeHub() as hub:
        hub.add(ID, repository)
        assert "modeling_own.py" not in names(download(hub, tmp_path))
        assert "modeling_own.py" in names(download(hub, tmp_path, **trusting)), "a record without code is not believed"
        asked = len(hub.log)
        download(hub, tmp_path, **trusting)
        assert len(hub.log) == asked
        forget(tmp_path, "modeling_own.py")
        hub.close()
        assert "model.safetensors" in names(download(hub, tmp_path, **trusting)), "without a network what is there is served"


def test_what_a_stopped_download_left_is_removed_unless_somebody_writes_it(vllm: dict[str, ModuleType], tmp_path: Path) -> None:
    storage = tmp_path / "hub/models--org--model"
    (storage / "blobs").mkdir(parents=True)
    left, written, resumable = (storage / "blobs" / name for name in ("aa.01234567.incomplete", "bb.01234567.incomplete", "cc.incomplete"))
    for path in (left, written, resumable):
        path.write_bytes(b"new")
    locks = tmp_path / "hub/.locks/models--org--model"
    locks.mkdir(parents=True)
    with FileLock(locks / "bb.lock"):
        vllm["download"].remove_orphans(storage)
        assert [path.exists() for path in (left, written, resumable)] == [False, True, True]
    vllm["download"].remove_orphans(storage)
    assert not written.exists()


@pytest.mark.parametrize(("value", "disabled"), [(None, True), ("", True), ("0", False)])
def test_xet_is_off_unless_asked_for(tmp_path: Path, value: str | None, disabled: bool) -> None:
    program = """
import contextlib
import download
with contextlib.suppress(download.StartError):
    download.obtain("no such name", "main")
from huggingface_hub import constants
print(constants.HF_HUB_DISABLE_XET)
"""
    environment = {"PYTHONPATH": str(ROOT / "vllm"), "HOME": str(tmp_path), "QMD_PHASE_FILE": str(tmp_path / "phase.json")}
    asked = {} if value is None else {"HF_HUB_DISABLE_XET": value}
    done = subprocess.run([sys.executable, "-c", program], env=environment | asked, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(disabled)


def test_a_proxys_certificate_is_believed_unless_another_is_set(vllm: dict[str, ModuleType], tmp_path: Path) -> None:
    trust, file = vllm["certificates"].trust, tmp_path / "ca"
    environment: dict[str, str] = {"CURL_CA_BUNDLE": "/own.pem", "SSL_CERT_FILE": ""}
    trust(file, environment)
    file.touch()
    trust(file, environment)
    assert environment == {"CURL_CA_BUNDLE": "/own.pem", "SSL_CERT_FILE": ""}, "an empty file stands for none"
    file.write_text("-----BEGIN CERTIFICATE-----")
    trust(file, environment)
    assert environment == {"CURL_CA_BUNDLE": "/own.pem", "SSL_CERT_FILE": str(file), "REQUESTS_CA_BUNDLE": str(file)}


def test_a_cache_of_another_user_is_never_a_reason_to_run_as_root(vllm: dict[str, ModuleType], tmp_path: Path) -> None:
    error = PermissionError(errno.EACCES, "Permission denied")
    if os.geteuid() == 0:
        os.chown(tmp_path, 1000, 1000)
    for cache in (tmp_path / "hub", Path("/no-such-folder")):
        said = str(vllm["hub_errors"].sentence(error, ID, "main", cache, has_token=False))
        assert "cannot be written by this user" in said and "give the cache to the user that the containers run as (QMD_UID)" in said
        assert ("set QMD_UID to its owner" in said) == (cache.parent.stat().st_uid != 0)


def test_the_records_lock_is_open_to_the_next_user(vllm: dict[str, ModuleType], tmp_path: Path) -> None:
    vllm["record"].write(tmp_path, ID, "main", "a" * 40, {})
    assert (tmp_path / "embed-service-revisions.lock").stat().st_mode & 0o777 == 0o666
