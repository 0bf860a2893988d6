"""The locks: everything pinned by hash, no addresses, and one version of each package in all of them."""

from __future__ import annotations

import json
import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.service import ROOT

REQUIREMENTS = ROOT / "requirements"
LOCKS = sorted(path.name for path in REQUIREMENTS.glob("*.txt"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def entries(lock: str) -> list[str]:
    """One string per requirement, its continuation lines joined, comments gone."""
    text = re.sub(r"^\s*#.*\n", "", (REQUIREMENTS / lock).read_text(), flags=re.MULTILINE)
    return [entry for entry in text.replace("\\\n", " ").splitlines() if entry.strip()]


def pins(lock: str) -> dict[str, set[str]]:
    """Versions by canonical name; two where they differ by Python or platform."""
    result: dict[str, set[str]] = {}
    for entry in entries(lock):
        requirement = Requirement(entry.split("--hash")[0])
        (specifier,) = requirement.specifier
        assert specifier.operator == "=="
        result.setdefault(canonicalize_name(requirement.name), set()).add(specifier.version)
    return result


@pytest.mark.parametrize("lock", LOCKS)
def test_every_entry_is_pinned_with_hashes(lock: str) -> None:
    assert pins(lock)
    assert [entry for entry in entries(lock) if not re.search(r"--hash=sha256:[0-9a-f]{64}", entry)] == []


@pytest.mark.parametrize("lock", LOCKS)
def test_no_addresses(lock: str) -> None:
    assert not re.search(r"://|^\s*(-i|-f|--(index|extra-index|find-links))", (REQUIREMENTS / lock).read_text(), re.MULTILINE)


def test_smaller_locks_are_parts_of_the_larger_ones() -> None:
    service, demo, test = pins("service.txt"), pins("demo.txt"), pins("test.txt")
    assert service.items() <= demo.items() <= test.items()


def test_peers_share_the_torch_download() -> None:
    for name in ("torch", "triton", "nvidia-cudnn-cu13", "nvidia-cublas"):
        assert pins("peers.txt")[name] == pins("test.txt")[name]


@pytest.mark.parametrize(
    ("lock", "extras"),
    [
        ("service.txt", ["service"]),
        ("ray.txt", ["service", "ray"]),
        ("demo.txt", ["service", "demo"]),
        ("test.txt", ["service", "ray", "demo", "test", "dev"]),
    ],
)
def test_locks_satisfy_the_extras(lock: str, extras: list[str]) -> None:
    locked = pins(lock)
    for extra in extras:
        for line in PROJECT["optional-dependencies"][extra]:
            requirement = Requirement(line)
            versions = locked.get(canonicalize_name(requirement.name), set())
            assert versions, f"{line} is not in {lock}: run `make lock`"
            assert all(requirement.specifier.contains(version) for version in versions), f"{line}: {lock} has {versions}: run `make lock`"


def test_base_installation_is_light() -> None:
    heavy = {"torch", "transformers", "sentence-transformers", "numpy", "scipy"}
    assert heavy.isdisjoint(canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"])


def test_node_lock_has_hashes_and_no_addresses() -> None:
    lock = json.loads((ROOT / "tests/node/package-lock.json").read_text())
    packages = {path: entry for path, entry in lock["packages"].items() if path}
    assert packages
    assert all(entry["integrity"].startswith("sha512-") and "resolved" not in entry for entry in packages.values())
    wanted = json.loads((ROOT / "tests/node/package.json").read_text())["dependencies"]
    assert {name: packages[f"node_modules/{name}"]["version"] for name in wanted} == wanted
