"""Packages of npm that tests use: tests/node, installed from its lock at their first use."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.support.require import require

__all__ = ["FOLDER", "node_package"]

FOLDER = Path(__file__).resolve().parents[1] / "node"


def node_package(name: str, requirement: str = "node") -> Path:
    """The folder of an installed package. Skips, or fails under REQUIRE=`requirement`, where Node.js or its registry is not to be had."""
    folder = FOLDER / "node_modules" / name
    if not (folder / "package.json").exists():
        npm = shutil.which("npm")
        require(requirement, shutil.which("node") is not None and npm is not None, "Node.js and npm are not installed")
        command = [str(npm), "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
        done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, timeout=240, check=False)
        require(requirement, done.returncode == 0 and folder.exists(), f"npm ci failed: {done.stderr[-500:]}")
    return folder
