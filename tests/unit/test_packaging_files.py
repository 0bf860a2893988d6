"""The wheel, the image's build file, the Makefile, what CI runs, and REQUIRE."""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
import subprocess
import sys
import threading
import tomllib
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

import embed_service
from tests.support.require import require
from tests.support.service import ROOT, free_port

DOCKERFILE = (ROOT / "Dockerfile.embed").read_text()


def test_wheel_holds_the_whole_package_and_nothing_else(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "embed_service", source / "embed_service", ignore=ignore)
    shutil.copytree(ROOT / "tests/support", source / "tests/support", ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "import setuptools.build_meta as backend; print(backend.build_wheel('.'))"
    done = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True, timeout=120, check=True)
    with zipfile.ZipFile(source / done.stdout.splitlines()[-1]) as archive:
        names = archive.namelist()
        metadata = archive.read(next(name for name in names if name.endswith("/METADATA"))).decode()
    packaged = {name for name in names if ".dist-info/" not in name}
    expected = {str(path.relative_to(source)) for path in (source / "embed_service").rglob("*") if path.is_file()}
    assert packaged == expected
    assert f"Version: {embed_service.__version__}\n" in metadata


def test_command_is_the_module() -> None:
    target = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["embed-service"]
    assert target == "embed_service.__main__:main"
    by_command = "import sys; from embed_service.__main__ import main; sys.argv = ['embed-service', '--help']; main()"
    outputs = [
        subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        for arguments in (["-c", by_command], ["-m", "embed_service", "--help"])
    ]
    assert [done.returncode for done in outputs] == [0, 0]
    assert all("serve" in done.stdout for done in outputs)


def included(path: str) -> bool:
    """Whether .dockerignore lets `path` through: the last pattern that matches decides."""
    result = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        bare = pattern.removeprefix("!")
        parents = [path, *(str(parent) for parent in Path(path).parents)]
        if any(fnmatch.fnmatch(part, bare.removeprefix("**/")) if "**/" in bare else part == bare or bare == "*" for part in parents):
            result = pattern.startswith("!")
    return result


def test_image_build_finds_what_it_copies() -> None:
    sources = [part for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE) for part in line.split()[:-1]]
    assert "embed_service/" in sources
    for source in sources:
        path = ROOT / source
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
        assert files, source
        assert all(included(str(file.relative_to(ROOT))) for file in files), source
    for path in (".git/config", ".venv/bin/python", "secrets/key", ".env", "docs/architecture.md", "embed_service/__pycache__/app.pyc"):
        assert not included(path), path


def test_code_comes_after_the_dependencies_in_the_image() -> None:
    assert DOCKERFILE.index("scripts.bootstrap service") < DOCKERFILE.index("COPY embed_service/")


DOWNLOAD = {"done_bytes": 5, "total_bytes": 9, "stalled_seconds": 61}


@pytest.mark.parametrize(
    ("status", "body", "line"),
    [
        (200, {"status": "ok", "phase": "ready"}, {"status": "ok", "phase": "ready"}),
        (503, {"status": "loading", "phase": "warming", "progress": DOWNLOAD}, {"status": "loading", "phase": "warming"}),
        (
            503,
            {"status": "loading", "phase": "downloading", "progress": {**DOWNLOAD, "text": "…", "stalled": True}},
            {"status": "loading", "phase": "downloading", **DOWNLOAD},
        ),
        (503, {"status": "error", "phase": "error", "error": "No GPU."}, {"status": "error", "phase": "error", "error": "No GPU."}),
    ],
)
def test_image_healthcheck(status: int, body: dict[str, Any], line: dict[str, Any]) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/health"
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            done = healthcheck(server.server_port)
        finally:
            server.shutdown()
            thread.join()
    assert done.returncode == (0 if status == 200 else 1), done.stderr
    assert json.loads(done.stdout) == line


def test_image_healthcheck_fails_where_nothing_listens() -> None:
    done = healthcheck(free_port())
    assert (done.returncode, json.loads(done.stdout)["phase"]) == (1, "starting")


def healthcheck(port: int) -> subprocess.CompletedProcess[str]:
    """The program of HEALTHCHECK, as the image runs it."""
    found = re.search(r"HEALTHCHECK [^\[]*?CMD (\[.*\])$", DOCKERFILE, re.MULTILINE | re.DOTALL)
    assert found is not None
    command = json.loads(found[1].splitlines()[0])
    assert command[0] == "python"
    return subprocess.run([sys.executable, *command[1:]], env={"PORT": str(port)}, capture_output=True, text=True, timeout=30, check=False)


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony is not None
    shown = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
    listed = re.findall(r"^  make ([\w-]+) +\S", shown, re.MULTILINE)
    assert listed == phony[1].split()
    for target in listed:
        subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, timeout=60, check=True)


def stubs(folder: Path, *names: str) -> dict[str, str]:
    """An environment whose PATH has only `names`, which print what they were called with, and a shell's bare necessities."""
    folder.mkdir()
    for name in names:
        (folder / name).write_text(f'#!/bin/sh\necho "{name} $* REQUIRE=$REQUIRE"\n')
        (folder / name).chmod(0o755)
    for name in ("bash", "sh", "dirname", "env"):
        program = shutil.which(name)
        assert program is not None
        (folder / name).symlink_to(program)
    return {"PATH": str(folder)}


def ci_project(folder: Path) -> Path:
    """`.ci/run` beside stand-ins for the scripts that prepare the tests' engine and tailnet, which only say what they are asked."""
    for name in (".ci", "scripts"):
        (folder / name).mkdir(parents=True)
    shutil.copy(ROOT / ".ci/run", folder / ".ci/run")
    for name in ("engine", "tailnet"):
        script = folder / f"scripts/test_{name}.sh"
        script.write_text(f"#!/bin/sh\necho {name} $1\n")
        script.chmod(0o755)
    return folder / ".ci/run"


def test_ci_starts_the_engine_runs_make_test_and_stops_the_engine(tmp_path: Path) -> None:
    programs = ("python3", "node", "npm", "chromium", "promtool", "prometheus-node-exporter")
    environment = stubs(tmp_path / "bin", "make", "apt-get", "id", *programs)
    script = ci_project(tmp_path / "project")
    done = subprocess.run([script], env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == [
        *("engine install", "tailnet install", "engine alertmanager", "engine start"),
        *("make test REQUIRE=node,docker,tailnet,browser,metrics,ray", "engine stop"),
    ]
    (tmp_path / "bin/make").write_text("#!/bin/sh\nexit 2\n")
    done = subprocess.run([script], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (2, "engine stop")


def test_ci_says_what_is_missing_where_it_may_not_install(tmp_path: Path) -> None:
    environment = stubs(tmp_path / "bin", "make", "python3", "apt-get")
    (tmp_path / "bin/id").write_text("#!/bin/sh\necho 1000\n")
    (tmp_path / "bin/id").chmod(0o755)
    done = subprocess.run([ci_project(tmp_path / "project")], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (3, "")
    assert "Missing: nodejs npm chromium fonts-dejavu-core prometheus prometheus-node-exporter." in done.stderr


def test_require(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REQUIRE", raising=False)
    require("node", True, "Node.js is not installed")
    with pytest.raises(pytest.skip.Exception, match=re.escape("Node.js is not installed (REQUIRE=node makes this a failure)")):
        require("node", False, "Node.js is not installed")
    monkeypatch.setenv("REQUIRE", "docker, node")
    with pytest.raises(pytest.fail.Exception, match=re.escape("REQUIRE=node: Node.js is not installed")):
        require("node", False, "Node.js is not installed")
    with pytest.raises(pytest.skip.Exception):
        require("gpu", False, "no GPU")
