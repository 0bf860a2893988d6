"""What the tests of the stack share."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from demo import smollm2
from tests.support.disk import small_disk as small_disk
from tests.support.service import poll

PROMPT, QUESTION, TOKENS = "The capital of France is", "What is the capital of France?", 16


@pytest.fixture(scope="session")
def expected() -> dict[str, str]:
    """transformers' own greedy text on SmolLM2's weights, in float32: {"completion": …, "chat": …}."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = smollm2.prepare()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    chat = tokenizer.apply_chat_template([{"role": "user", "content": QUESTION}], add_generation_prompt=True, tokenize=False)
    texts = {}
    for name, text in (("completion", PROMPT), ("chat", chat)):
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        out = model.generate(**ids, max_new_tokens=TOKENS, do_sample=False)
        texts[name] = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


@dataclass(frozen=True)
class SecondEngine:
    """`pid`: a process in its network namespace."""

    host: str
    pid: int


@pytest.fixture
def second_engine(small_disk: Path) -> Iterator[SecondEngine]:
    """The address of an engine without NVIDIA's hook on its PATH, on the small disk, in a network namespace of its own.

    Outside of one it would remove the bridge of the engine that runs already.
    """
    run = Path(f"/run/qmd-test-second-{os.getpid()}")
    run.mkdir()
    host = f"unix://{run}/docker.sock"
    clean = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    options = ["--host", host, "--data-root", str(small_disk), "--exec-root", str(run / "exec"), "--pidfile", str(run / "pid")]
    with (run / "log").open("wb") as log:
        process = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", "dockerd", *options, "--iptables=false"],
            env=clean,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            poll(
                lambda: subprocess.run(["docker", "--host", host, "version"], capture_output=True, check=False).returncode == 0,
                60,
                "the second engine",
                0.3,
            )
            yield SecondEngine(host, process.pid)
        finally:
            process.terminate()
            process.wait(30)
            shutil.rmtree(run, ignore_errors=True)
