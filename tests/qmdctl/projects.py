"""A project's folder with the true compose files and a .env of the test's own."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from qmdctl.project import Project
from qmdctl.settings import Settings, load_settings
from tests.support.service import ROOT


def settings_of(folder: Path, values: Mapping[str, str] | None = None, services: Sequence[str] = ("embed", "vllm")) -> Settings:
    """What is in force there with these lines in .env."""
    for name in ("compose.yaml", "compose.cpu.yaml", ".env.example"):
        shutil.copy(ROOT / name, folder)
    profiles = "generation" if "vllm" in services else ""
    lines = {"COMPOSE_PROFILES": profiles, **(values or {})}
    (folder / ".env").write_text("".join(f"{key}={value}\n" for key, value in lines.items()))
    return load_settings(Project(folder, "test"), environment={})
