"""The official OpenAI package for Node.js. A server that ignores its base64 gives it vectors of a quarter of the length."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

import httpx
import pytest

from tests.support.node import FOLDER, node_package
from tests.support.require import require
from tests.support.service import ServiceProcess
from tests.support.texts import LONE_HIGH, prose
from tests.support.wire import close, embed

TEXTS = ["one note", prose(90, 1), "", "caf\u00e9 \u65e5\u672c\u8a9e", f"cut {LONE_HIGH}"]

pytestmark = pytest.mark.node


@pytest.fixture(scope="module")
def program() -> str:
    """`node`, with the packages of tests/node installed from its lock."""
    node = shutil.which("node")
    require("node", node is not None, "Node.js is not installed")
    node_package("openai")
    return str(node)


@pytest.fixture(scope="module")
def seen(program: str, service: ServiceProcess) -> dict[str, Any]:
    """What the SDK read from the service."""
    request = json.dumps({"texts": TEXTS, "dimensions": 64})
    done = subprocess.run(
        [program, "openai.mjs", service.url], cwd=FOLDER, input=request, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_vectors_are_those_of_raw_http(seen: dict[str, Any], raw: httpx.Client) -> None:
    expected = embed(raw, [t.replace(LONE_HIGH, "\ufffd") for t in TEXTS])
    assert seen["indices"] == [0, 1, 2, 3, 4]
    assert {len(v) for v in seen["vectors"]} == {384}
    assert close(seen["vectors"], expected)
    assert close(seen["floats"], expected)
    assert seen["usage"]["total_tokens"] > 90


def test_dimensions(seen: dict[str, Any], raw: httpx.Client) -> None:
    assert close(seen["cut"], embed(raw, TEXTS[0], dimensions=64)[0])


def test_models_and_errors(seen: dict[str, Any]) -> None:
    assert seen["model"] == "default"
    assert {"default", "qmd-embed"} <= set(seen["models"])
    assert seen["error"]["name"] == "BadRequestError"
    assert seen["error"]["status"] == 400
    assert seen["error"]["param"] == "dimensions"
