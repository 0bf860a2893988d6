"""Skips for what an installation lacks, which `REQUIRE` turns into failures.

A test that needs Node.js begins with

    require("node", shutil.which("node") is not None, "Node.js is not installed")

On a machine without it the test is skipped and the reason is printed; `REQUIRE=node make test` (as `.ci/run` does) makes it fail
instead, so that a broken preparation of the machine cannot pass for a green run. `REQUIRE` takes several names, comma-separated.
"""

from __future__ import annotations

import os

import pytest


def required() -> frozenset[str]:
    """The names in the environment variable REQUIRE."""
    return frozenset(name.strip() for name in os.environ.get("REQUIRE", "").split(",") if name.strip())


def require(name: str, available: bool, reason: str) -> None:
    """Go on if `available`; otherwise skip the calling test or fixture with `reason`, or fail it if REQUIRE names `name`."""
    if available:
        return
    if name in required():
        pytest.fail(f"REQUIRE={name}: {reason}", pytrace=False)
    pytest.skip(f"{reason} (REQUIRE={name} makes this a failure)")
