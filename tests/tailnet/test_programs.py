"""scripts/test_tailnet.sh: the programs are those of the image that compose.yaml names, and what is missing is said."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.service import ROOT
from tests.support.tailnet_images import CACHE, PROGRAMS, need_programs, sidecar_image

pytestmark = pytest.mark.tailnet
SCRIPT = ROOT / "scripts/test_tailnet.sh"
NEEDED = ("bash", "env", "dirname", "sed", "head", "awk", "cat", "sha256sum", "sort")


def install(cache: Path, path: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": path, "QMD_TEST_TAILNET_CACHE": str(cache)}
    return subprocess.run([SCRIPT, "install"], env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_the_programs_call_themselves_as_the_image_does() -> None:
    need_programs()
    for program in ("tailscale", "tailscaled"):
        said = subprocess.run([PROGRAMS / program, "--version"], capture_output=True, text=True, check=True).stdout
        assert f"v{said.splitlines()[0]}" == sidecar_image().split(":")[-1]


@pytest.mark.parametrize(("version", "words"), [(None, "or newer is needed: install it"), ("go1.19.8", "Go 1.19.8 is too old")])
def test_a_missing_or_old_go_is_named(tmp_path: Path, version: str | None, words: str) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in NEEDED:
        found = shutil.which(name)
        assert found
        (folder / name).symlink_to(found)
    if version:
        (folder / "go").write_text(f"#!/bin/sh\necho {version}\n")
        (folder / "go").chmod(0o755)
    done = install(tmp_path / "cache", str(folder))
    assert (done.returncode, done.stdout) == (3, "")
    assert words in done.stderr
    assert not (tmp_path / "cache").exists()


def test_what_is_built_is_not_built_again(tmp_path: Path) -> None:
    """Without Go on its PATH, where it would have to build."""
    need_programs()
    done = install(CACHE, "/usr/bin:/bin")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
