"""vLLM's two versions behind the same start script: the pinned image's 0.12 and the later 0.32, with SmolLM2's true weights.

0.12 is taken through its life in test_lifecycle.py; this is 0.32, and the names and fields that clients send to both. The models lie in a
Hugging Face cache that was there before, as huggingface_hub made it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from demo import smollm2
from tests.metrics.test_files import vllm_names
from tests.stack.generation import NO_THINKING, chat_prompt, right_text_under_every_name
from tests.support.checkpoints import checkpoint
from tests.support.hub import FakeHub
from tests.support.qmdctl_cli import docker
from tests.support.service import minilm_path
from tests.support.stack_images import embed_image, need_engine, vllm_image
from tests.support.stack_project import Stack, bridge_address, make_project

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(900)]
EMBED_MODEL, VLLM_MODEL, THINKING_MODEL = "sentence-transformers/all-MiniLM-L6-v2", "HuggingFaceTB/SmolLM2-135M-Instruct", "Qwen/Qwen3-Tiny"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    need_engine()
    embed_image()
    home = tmp_path_factory.mktemp("versions")
    with FakeHub(bridge_address()) as hub:
        hub.add(EMBED_MODEL, Path(minilm_path()))
        hub.add(VLLM_MODEL, smollm2.prepare())
        hub.add(THINKING_MODEL, checkpoint("qwen3-chat"))
        values = {
            "COMPOSE_PROJECT_NAME": "qmdver",
            "EMBED_MODEL": EMBED_MODEL,
            "RERANK_MODEL": EMBED_MODEL,
            "VLLM_MODEL": VLLM_MODEL,
            "VLLM_IMAGE": vllm_image("0.32"),
            "VLLM_MAX_MODEL_LEN": "2048",
            "HF_ENDPOINT": hub.url,
            "HF_CACHE_DIR": str(existing_cache(home / "huggingface", hub)),
        }
        running = Stack(make_project(home / "project", home, values), hub)
        yield running
        running.close("qmdver")


def existing_cache(folder: Path, hub: FakeHub) -> Path:
    """A user's own cache with SmolLM2 in it, of the user id that the containers run as."""
    program = "import sys, huggingface_hub as h; h.snapshot_download(sys.argv[1])"
    subprocess.run([sys.executable, "-c", program, VLLM_MODEL], env={**os.environ, **hub.environment(folder)}, check=True, timeout=120)
    if os.getuid() == 0:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, 1000, 1000, follow_symlinks=False)
    return folder


@pytest.mark.parametrize("version", ["0.32", "0.12"])
def test_right_text_under_every_name_and_with_every_client_s_fields(stack: Stack, expected: dict[str, str], version: str) -> None:
    stack.qmdctl.set(VLLM_IMAGE=vllm_image(version))
    stack.up()
    assert f"{version}." in docker("exec", "qmd-vllm", "python3", "-c", "import importlib.metadata as m; print(m.version('vllm'))")
    right_text_under_every_name(stack, VLLM_MODEL, expected)
    printed = httpx.get(f"{stack.url('vllm')}/metrics", timeout=30, trust_env=False).text
    assert {name for name in vllm_names() if not re.search(rf"^{name}\{{", printed, re.MULTILINE)} == set(), "what the board asks for"


def test_a_model_of_an_existing_cache_is_not_downloaded_again(stack: Stack) -> None:
    weights = [request.path for request in stack.hub.file_requests("model.safetensors")]
    assert sum(VLLM_MODEL in path for path in weights) == 1, "the user's own download"
    assert sum(EMBED_MODEL in path for path in weights) == 1
    cache = Path(stack.qmdctl.value("HF_CACHE_DIR")) / "hub"
    assert (cache / f"models--{EMBED_MODEL.replace('/', '--')}").is_dir(), "what was missing is there now as well"


def test_thinking_is_off_in_the_later_version_as_well(stack: Stack) -> None:
    stack.qmdctl.set(VLLM_MODEL=THINKING_MODEL, VLLM_IMAGE=vllm_image("0.32"))
    stack.up()
    assert chat_prompt(stack).endswith(NO_THINKING)
    assert not chat_prompt(stack, chat_template_kwargs={"enable_thinking": True}).endswith(NO_THINKING)
