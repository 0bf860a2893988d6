"""`uv tool install` of the project, as on a laptop: a qmdctl without torch that works from any directory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from demo.processes import ROOT
from scripts.bootstrap.pip_settings import uv_environment

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the installed programs; the packages come from uv's cache, or from the index that this machine uses."""
    folder = tmp_path_factory.mktemp("tool")
    environment = {
        **uv_environment(os.environ),
        "UV_TOOL_DIR": str(folder / "tools"),
        "UV_TOOL_BIN_DIR": str(folder / "bin"),
        "UV_NO_PROGRESS": "1",
    }
    shutil.rmtree(ROOT / "build", ignore_errors=True)  # setuptools would install what an earlier build left there
    uv = Path(sys.executable).with_name("uv")
    subprocess.run([str(uv), "tool", "install", "--python", sys.executable, str(ROOT)], env=environment, check=True, timeout=240)
    return folder


def test_it_brings_no_torch_and_none_of_the_service_s_packages(installed: Path) -> None:
    packages = {path.name.split("-")[0].lower() for path in (installed / "tools").rglob("*.dist-info")}
    assert {"typer", "docker", "httpx"} <= packages
    assert not packages & {"torch", "transformers", "fastapi", "tokenizers", "huggingface_hub", "numpy"}


def test_it_works_from_any_directory(installed: Path, folder: Path, tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path / "state")}

    def qmdctl(*arguments: str, cwd: Path) -> str:
        command = [str(installed / "bin/qmdctl"), *arguments]
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=True, timeout=60)
        return done.stdout

    assert "Exit codes" in qmdctl("--help", cwd=tmp_path)
    assert qmdctl("config", "EMBED_PORT", cwd=folder) == "8001\n"
    assert qmdctl("config", "EMBED_PORT", cwd=Path("/")) == "8001\n"


def test_it_carries_its_data_files(installed: Path) -> None:
    (package,) = (path for path in (installed / "tools").rglob("site-packages/qmdctl") if path.is_dir())
    there = {path.relative_to(package) for path in package.rglob("*") if path.suffix in (".yaml", ".py") or path.name == "py.typed"}
    source = ROOT / "qmdctl"
    wanted = {path.relative_to(source) for path in source.rglob("*") if path.suffix in (".yaml", ".py") or path.name == "py.typed"}
    assert there == wanted
