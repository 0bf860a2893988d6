"""The modules of vllm/, which the container imports by their plain names."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import pytest

from tests.support.service import ROOT

NAMES = ("phase", "certificates", "arguments", "template", "record", "hub_errors", "download", "probe", "start")


@pytest.fixture(scope="module")
def vllm() -> dict[str, ModuleType]:
    """The folder's modules, imported as the container does: by their plain names."""
    sys.path.insert(0, str(ROOT / "vllm"))
    try:
        return {name: importlib.import_module(name) for name in NAMES}
    finally:
        sys.path.remove(str(ROOT / "vllm"))
        for name in NAMES:
            sys.modules.pop(name, None)
