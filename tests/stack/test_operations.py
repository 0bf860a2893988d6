"""docs/operations/ is run as it stands: every command of its pages, page after page, on one real stack.

Real: the engine, the embed image and service, git. FAKE: the model hub, on the engine's bridge. Without vLLM, which other tests start.
A line that is not run says so itself (`# not run by the tests: …`). The embed image is named as the tests name it, and where a verb asks,
`--yes` answers.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.support.doc_commands import Command, read_commands
from tests.support.hub import FakeHub
from tests.support.qmdctl_cli import docker
from tests.support.service import ROOT, minilm_path
from tests.support.stack_images import EMBED_IMAGE, need_engine
from tests.support.stack_project import Stack, bridge_address, make_project

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(900)]
PAGES = ("start", "watch", "measure", "change-a-model", "upgrade", "share-the-gpu", "report", "restore", "move", "check-an-index")
FOLDER = ROOT / "docs/operations"
PROJECT = "qmd"  # the pages name its volumes
EMBED_MODEL, OTHER_MODEL = "sentence-transformers/all-MiniLM-L6-v2", "Qwen/Qwen3-Embedding-0.6B"


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=Tests", "-c", "user.email=tests@example.com", "-c", "init.defaultBranch=main")
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, timeout=60)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A clone with two releases, the first checked out; not started. At the end nothing of it is left."""
    need_engine()
    home = tmp_path_factory.mktemp("operations")
    with FakeHub(bridge_address()) as hub:
        for model in (EMBED_MODEL, OTHER_MODEL):
            hub.add(model, Path(minilm_path()))
        values = {
            "COMPOSE_PROJECT_NAME": PROJECT,
            "COMPOSE_PROFILES": "",
            "GENERATION_URL": "",
            "DTYPE": "float32",
            "EMBED_MODEL": EMBED_MODEL,
            "RERANK_MODEL": EMBED_MODEL,
            "HF_ENDPOINT": hub.url,
        }
        qmdctl = make_project(home / "project", home, values)
        qmdctl.environment = {"QMDCTL_NO_RECORD": ""}  # the pages have a history
        (qmdctl.folder / ".gitignore").write_text((ROOT / ".gitignore").read_text() + "/backup/\n")
        git(qmdctl.folder, "init", "--quiet")
        for release in ("v0.1.0", "v0.2.0"):
            (qmdctl.folder / "CHANGELOG.md").write_text(f"# Changes\n\n## {release}\n")
            git(qmdctl.folder, "add", "--all")
            git(qmdctl.folder, "commit", "--quiet", "--message", release)
            git(qmdctl.folder, "tag", release)
        git(qmdctl.folder, "checkout", "--quiet", "v0.1.0")
        programs = home / "bin"
        programs.mkdir()
        (programs / "qmdctl").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m qmdctl "$@"\n')
        (programs / "qmdctl").chmod(0o755)
        running = Stack(qmdctl, hub)
        yield running
        running.close(PROJECT)
        for name in docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", "--filter", f"reference={PROJECT}-*:release-*").split():
            docker("image", "rm", name)


@cache
def asks(verb: tuple[str, ...]) -> bool:
    """Whether this verb of qmdctl takes --yes."""
    done = subprocess.run(
        [sys.executable, "-m", "qmdctl", *verb, "--help"], capture_output=True, text=True, check=True, timeout=60, cwd=ROOT
    )
    return "--yes" in done.stdout


def as_run(text: str) -> str:
    """The command with the two names replaced."""
    words = text.replace("qmd-embed:0.1.0", EMBED_IMAGE).split(" ")
    if words[0] == "qmdctl" and "--dry-run" not in words:
        verb = tuple(words[1:3]) if words[1] in ("models", "history", "keys") and len(words) > 2 and words[2].isalpha() else (words[1],)
        if asks(verb):
            words.append("--yes")
    return " ".join(words)


def test_every_page_is_run() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.md")) == sorted(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_the_page(stack: Stack, page: str) -> None:
    commands = read_commands(FOLDER / f"{page}.md")
    assert commands
    for command in commands:
        if not command.why_not:
            run(stack, command)


def run(stack: Stack, command: Command) -> None:
    environment = stack.qmdctl.full_environment({"PATH": f"{stack.qmdctl.home / 'bin'}{os.pathsep}{os.environ['PATH']}"})
    text = as_run(command.text)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=stack.qmdctl.folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, f"{command.section}: {text}\n{done.stdout}"
