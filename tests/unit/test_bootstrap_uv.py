"""Getting uv where there is no pip: from the index that pip is configured with."""

from __future__ import annotations

import io
import platform
import stat
import sys
import zipfile
from pathlib import Path

import pytest

from scripts.bootstrap import obtain_uv as module
from tests.support.package_index import PackageIndex

VERSION = "9.9.9"
SYSTEM = {"linux": "manylinux_2_17", "darwin": "macosx_11_0"}[sys.platform]
NAME = f"uv-{VERSION}-py3-none-{SYSTEM}_{platform.machine().lower()}.whl"
PROGRAM = f"#!/bin/sh\necho uv {VERSION}\n"


def fake_uv_wheel(program: str = PROGRAM) -> bytes:
    """A fake of uv's wheel: its layout, with a shell script in the place of the binary."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("uv/__init__.py", "")
        archive.writestr(f"uv-{VERSION}.data/scripts/uv", program)
    return buffer.getvalue()


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A Python with no pip, no ensurepip, no Debian wheels and nothing on PATH. Its environment's folder."""
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(module, "newest_wheel", lambda root: None)
    (tmp_path / "bin").mkdir()
    return tmp_path / "bin/python"


@pytest.mark.parametrize("login", ["", "me:p%40ss"])
def test_from_the_configured_index(bare: Path, tmp_path: Path, login: str) -> None:
    with PackageIndex({NAME: fake_uv_wheel()}, login="me:p@ss" if login else "") as index:
        lock = tmp_path / "bootstrap.txt"
        lock.write_text(index.lock("uv"))
        url = index.url.replace("me:p@ss", login)
        found = module.obtain_uv(bare, lock, {"UV_DEFAULT_INDEX": url})
    assert found == bare.parent / "uv"
    assert found.stat().st_mode & stat.S_IXUSR


def test_wheel_with_another_hash_is_refused(bare: Path, tmp_path: Path) -> None:
    with PackageIndex({NAME: fake_uv_wheel()}) as index:
        lock = tmp_path / "bootstrap.txt"
        lock.write_text(index.lock("uv"))
        index.files[NAME] = fake_uv_wheel("#!/bin/sh\necho uv 9.9.9 and more\n")
        with pytest.raises(module.NoInstallerError):
            module.obtain_uv(bare, lock, {"UV_DEFAULT_INDEX": index.url})
    assert not (bare.parent / "uv").exists()


def test_nothing_at_all_names_the_fix(bare: Path, tmp_path: Path) -> None:
    lock = tmp_path / "bootstrap.txt"
    lock.write_text("uv==9.9.9 --hash=sha256:00\n")
    with pytest.raises(module.NoInstallerError, match="apt install python3-venv"):
        module.obtain_uv(bare, lock, {})


@pytest.mark.parametrize(("said", "taken"), [("uv 0.13.9 (x86_64-unknown-linux-gnu)", True), ("uv 0.6.2", False), ("what", False)])
def test_uv_on_path_is_taken_when_new_enough(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: str, taken: bool) -> None:
    program = tmp_path / "uv"
    program.write_text(f"#!/bin/sh\necho '{said}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert module.find_uv(tmp_path / "venv/bin/python") == (program if taken else None)


def test_debian_wheel_is_run_where_it_lies(bare: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    folder = tmp_path / "usr/share/python-wheels"
    folder.mkdir(parents=True)
    (folder / "pip-23.0.1-py3-none-any.whl").touch()
    (folder / "setuptools-66-py3-none-any.whl").touch()
    wheel = module.newest_wheel(tmp_path)
    assert wheel is not None
    assert wheel.name == "pip-23.0.1-py3-none-any.whl"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(module, "newest_wheel", lambda root: wheel)
    assert module.find_pip(bare, tmp_path) == [str(bare), f"{wheel}/pip"]
