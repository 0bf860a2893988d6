"""The checks of secret files, of an existing cache and of the disk. FAKE: the engine, and the disk's size."""

from __future__ import annotations

import errno
import os
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from qmdctl.checks import rootless
from tests.qmdctl.containers import container
from tests.qmdctl.contexts import DESKTOP, ROOTLESS, FakeEngine, NoEngine, found, levels, machine, one


def test_key_files(tmp_path: Path) -> None:
    finding = one(NoEngine(tmp_path, machine(), {"HF_TOKEN_FILE": "./secrets/hf_token"}), "secrets", "failure")
    assert "HF_TOKEN_FILE=./secrets/hf_token is not a file" in finding.what
    key = tmp_path / "secrets/hf_token"
    key.parent.mkdir()
    key.write_text("hf_x\n")
    key.chmod(0o600)
    values = {"HF_TOKEN_FILE": "./secrets/hf_token", "QMD_UID": str(key.stat().st_uid)}
    assert [f.level for f in found(NoEngine(tmp_path, machine(), values), "secrets")] == ["ok"]
    strange = {**values, "QMD_UID": "4242", "QMD_GID": "4242"}
    other = one(NoEngine(tmp_path, machine(), strange), "secrets", "failure")
    assert "QMD_UID=4242" in other.why
    assert f"sudo chown 4242:4242 {key}" in other.fix
    assert "QMD_UID=0" not in other.fix
    key.chmod(0o644)
    assert one(NoEngine(tmp_path, machine(), values), "secrets", "warning").fix == f"chmod 600 {key}"
    key.chmod(0o640)
    group = {**values, "QMD_UID": "4242", "QMD_GID": str(key.stat().st_gid)}
    assert levels(NoEngine(tmp_path, machine(), group), "secrets") == ["ok"], "its group reads it"
    desktop = FakeEngine(tmp_path, machine(), strange, info=DESKTOP)
    assert "failure" not in levels(desktop, "secrets"), "Docker Desktop gives owners another meaning"


def test_the_certificates_are_the_builders_to_read(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text("x")
    ca.chmod(0o400)
    assert levels(NoEngine(tmp_path, machine(), {"CA_FILE": "ca.pem", "QMD_UID": "4242"}), "secrets") == ["ok"]


def test_a_folder_that_cannot_be_entered_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAKE: the refusal, which root, who may run the tests, does not meet."""
    true_stat = Path.stat

    def stat(self: Path, **options: Any) -> os.stat_result:
        if "closed" in self.parts:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return true_stat(self, **options)

    monkeypatch.setattr(Path, "stat", stat)
    values = {"HF_TOKEN_FILE": "/closed/token", "HF_CACHE_DIR": "/closed/hub"}
    finding = one(FakeEngine(tmp_path, machine(), values), "secrets", "warning")
    assert "/closed/token cannot be looked at by this user" in finding.what
    assert "/closed/hub cannot be looked at" in one(FakeEngine(tmp_path, machine(), values), "cache_volume", "warning").what
    assert one(FakeEngine(tmp_path, machine(), {"CA_FILE": "/closed/ca"}), "secrets", "failure")


def test_under_rootless_docker_the_user_is_0(tmp_path: Path) -> None:
    key = tmp_path / "token"
    key.write_text("x")
    key.chmod(0o600)
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o755)
    values = {"HF_TOKEN_FILE": "./token", "HF_CACHE_DIR": "./cache", "QMD_UID": "1000", "QMD_GID": "1000"}
    for name in ("secrets", "cache_volume"):
        finding = one(FakeEngine(tmp_path, machine(), values, info=ROOTLESS), name, "failure")
        assert finding.fix == "set QMD_UID=0 and QMD_GID=0 in .env"
        assert "rootless" in finding.why
        right = FakeEngine(tmp_path, machine(), {**values, "QMD_UID": "0", "QMD_GID": "0"}, info=ROOTLESS)
        assert "failure" not in levels(right, name)


@pytest.mark.parametrize(
    ("limit", "given", "level", "fix"),
    [
        ("8388608", "", "failure", "MEMLOCK_BYTES=8388608"),
        ("8388608", "16777216", "failure", "MEMLOCK_BYTES=8388608"),
        ("8388608", "8388608", "ok", ""),
        ("unlimited", "", "ok", ""),
        (None, "", "warning", "MEMLOCK_BYTES"),
        (None, "8388608", "ok", ""),
    ],
)
def test_locked_memory_of_a_rootless_engine(tmp_path: Path, limit: str | None, given: str, level: str, fix: str) -> None:
    """FAKE: /proc of its dockerd."""
    (tmp_path / "proc/77").mkdir(parents=True)
    if limit:
        (tmp_path / "docker.pid").write_text("77")
        (tmp_path / "proc/77/limits").write_text(f"Max stack size   1   2   bytes\nMax locked memory   {limit:20} {limit:20} bytes\n")
    values = {"MEMLOCK_BYTES": given}
    context = FakeEngine(tmp_path, machine(), values, host=f"unix://{tmp_path}/docker.sock", info=ROOTLESS)
    (finding,) = rootless.check(context, tmp_path / "proc")
    assert finding.level == level
    assert fix in finding.fix
    assert levels(FakeEngine(tmp_path, machine(), values), "rootless") == ["ok"]


def test_the_folder_of_an_existing_cache(tmp_path: Path) -> None:
    values = {"HF_CACHE_DIR": "./hf", "QMD_UID": "4242", "QMD_GID": "4242"}
    missing = one(FakeEngine(tmp_path, machine(), values), "cache_volume", "failure")
    assert missing.fix == f"mkdir -p {tmp_path / 'hf'}"
    assert missing.configuration
    (tmp_path / "hf").mkdir(mode=0o755)
    closed = one(FakeEngine(tmp_path, machine(), values), "cache_volume", "failure")
    assert f"sudo chown -R 4242:4242 {tmp_path / 'hf'}" in closed.fix
    for model in ("Qwen/Qwen3-Embedding-4B", "Qwen/Qwen3-Reranker-4B", "Qwen/Qwen3-4B"):
        snapshot = tmp_path / f"hf/hub/models--{model.replace('/', '--')}/snapshots/1"
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text('{"model_type": "qwen3"}')
    assert one(FakeEngine(tmp_path, machine(), values), "cache_volume", "warning"), "there is nothing left to write"
    (tmp_path / "hf/hub").chmod(0o777)
    assert levels(FakeEngine(tmp_path, machine(), values), "cache_volume") == ["skipped"]
    assert levels(FakeEngine(tmp_path, machine(), values, containers={"embed": container()}), "cache_volume") == ["ok"]


Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(
    ("free_gb", "values", "volumes", "expected"),
    [
        (80, {}, (), ["ok"]),
        (50, {}, (), ["failure"]),
        (50, {}, ("qmd_models",), ["warning"]),
        (20, {}, ("qmd_models",), ["failure"]),
        (50, {"HF_CACHE_DIR": "./hf"}, (), ["failure"]),
        (21, {"COMPOSE_FILE": "compose.yaml:compose.cpu.yaml"}, (), ["ok"]),
    ],
    ids=["fits", "too small", "weights may be here", "images do not fit", "two folders of one disk", "cpu"],
)
def test_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_gb: int, values: dict[str, str], volumes: tuple[str, ...], expected: list[str]
) -> None:
    """FAKE: the size of the disk. Images 31 GB, weights 24 GB; on a CPU 14 and 3.6 GB."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, free_gb * 10**9))
    context = FakeEngine(tmp_path, machine(), values, volumes=volumes, info={"DockerRootDir": str(tmp_path)})
    assert levels(context, "disk") == expected


def test_the_disk_of_a_virtual_machine_is_not_looked_at(tmp_path: Path) -> None:
    for info in (DESKTOP | {"DockerRootDir": "/"}, {"DockerRootDir": "/no/such/folder"}):
        (finding,) = found(FakeEngine(tmp_path, machine(), info=info), "disk")
        assert finding.level == "skipped"
