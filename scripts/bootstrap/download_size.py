"""How much an installation will download: what uv would fetch, with the sizes that the index gives."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Mapping
from pathlib import Path


def missing_packages(uv: Path, install: list[str], environment: Mapping[str, str]) -> set[str] | None:
    """Names of the packages that `uv install…` would download: neither in the environment nor in uv's cache. None: uv cannot tell."""
    command = [str(uv), *install, "--dry-run", "--verbose"]
    plan = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    uncached = re.findall(r"^DEBUG Identified uncached distribution: ([\w.-]+)==", plan.stderr, re.MULTILINE)
    return {normal(name) for name in uncached} if plan.returncode == 0 else None


def sizes(uv: Path, python: Path, files: list[Path], environment: Mapping[str, str]) -> dict[str, int]:
    """Bytes of each package's file for this machine; a package whose size the index does not tell is left out."""
    command = [str(uv), "pip", "compile", "--python", str(python), "--no-deps", "--format", "pylock.toml", "--no-header", "--quiet"]
    answer = subprocess.run([*command, *map(str, files)], capture_output=True, text=True, check=False, env=environment)
    try:
        packages = tomllib.loads(answer.stdout).get("packages", [])
    except tomllib.TOMLDecodeError:
        return {}
    result = {}
    for package in packages:
        artifacts = package.get("wheels") or [package.get("sdist", {})]
        if "size" in artifacts[0]:
            result[normal(package["name"])] = int(artifacts[0]["size"])
    return result


def announcement(missing: set[str], size: Mapping[str, int]) -> str:
    """The sentence that is printed before a download."""
    if not missing:
        return "Nothing to download: every package is in uv's cache."
    unknown = missing - size.keys()
    total = sum(size.get(name, 0) for name in missing)
    packages = f"{len(missing)} package{'s' if len(missing) > 1 else ''}"
    if len(unknown) == len(missing):
        return f"{packages} to download; the package index does not tell their sizes (about 3 GB for all of them on Linux, with CUDA)."
    more = f" and {len(unknown)} of unknown size" if unknown else ""
    cuda = ""
    if any(name.startswith("nvidia-") for name in missing):
        cuda = " Most of it is torch with CUDA; TORCH_BACKEND=cpu takes a small torch instead."
    return f"{human(total)} to download in {packages}{more}: {duration(total)} at 100 Mbit/s.{cuda}"


def human(size: int) -> str:
    """Bytes in decimal units, as package indexes and download meters show them."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"


def duration(size: int) -> str:
    """Time for `size` bytes at 100 Mbit/s, in words."""
    seconds = size * 8 / 100e6
    return "a few seconds" if seconds < 10 else f"about {seconds:.0f} seconds" if seconds < 90 else f"about {seconds / 60:.0f} minutes"


def normal(name: str) -> str:
    """A package's name as the index compares it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
