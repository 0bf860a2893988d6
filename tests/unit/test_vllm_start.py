"""What the vLLM container is given, outside the container: its settings, its template, its download. On the engine: tests/stack."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any

import jinja2
import pytest

from embed_service.models.revisions import Revisions
from tests.support.checkpoints import QWEN3_CHAT_TEMPLATE
from tests.support.hub import FakeHub
from tests.support.service import ROOT

SECRET_FREE = {"QMD_MODEL": "org/model"}


def serve(vllm: dict[str, ModuleType], **environment: str) -> list[str]:
    command: list[str] = vllm["arguments"].serve({**SECRET_FREE, **environment}, Path("/models/x"), None)
    return command


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def test_the_command_line_has_every_alias_once_and_the_memory_figures(vllm: dict[str, ModuleType]) -> None:
    command = serve(vllm, QMD_MODEL="Qwen/Qwen3-4B", QMD_KV_CACHE_GB="6", QMD_GPU_MEMORY_UTILIZATION="0.48", QMD_MAX_MODEL_LEN="2048")
    assert command[:3] == ["vllm", "serve", "/models/x"]
    start = command.index("--served-model-name") + 1
    names = command[start : start + 5]
    assert names == ["Qwen/Qwen3-4B", "default", "generate", "Qwen/Qwen3-8B", "Qwen/Qwen2.5-3B-Instruct"]
    assert command[start + 5].startswith("--")
    assert option(command, "--kv-cache-memory-bytes") == "6000000000"
    assert option(command, "--gpu-memory-utilization") == "0.48"
    assert option(command, "--max-model-len") == "2048"
    assert "--enforce-eager" not in command
    assert "--kv-cache-memory-bytes" not in serve(vllm, QMD_KV_CACHE_GB="auto")
    more = serve(vllm, QMD_ENFORCE_EAGER="true", QMD_EXTRA_ARGS="--seed 7 --served-model-name 'a b'")
    assert "--enforce-eager" in more
    assert more[-4:] == ["--seed", "7", "--served-model-name", "a b"]


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("QMD_MAX_MODEL_LEN", "long", "VLLM_MAX_MODEL_LEN=long"),
        ("QMD_MAX_NUM_SEQS", "0", "VLLM_MAX_NUM_SEQS=0"),
        ("QMD_GPU_MEMORY_UTILIZATION", "20", "VLLM_GPU_MEMORY_UTILIZATION=20"),
        ("QMD_KV_CACHE_GB", "-1", "VLLM_KV_CACHE_GB=-1"),
        ("QMD_KV_CACHE_GB", "inf", "VLLM_KV_CACHE_GB=inf"),
        ("QMD_KV_CACHE_GB", "nan", "VLLM_KV_CACHE_GB=nan"),
        ("QMD_KV_CACHE_GB", "1e300", "VLLM_KV_CACHE_GB=1e300"),
        ("QMD_ENFORCE_EAGER", "maybe", "VLLM_ENFORCE_EAGER=maybe"),
        ("QMD_EXTRA_ARGS", "--a 'b", "VLLM_EXTRA_ARGS"),
    ],
)
def test_a_value_that_cannot_be_used_names_its_key_in_env(vllm: dict[str, ModuleType], key: str, value: str, named: str) -> None:
    with pytest.raises(vllm["phase"].StartError, match=named):
        serve(vllm, **{key: value})


def render(template: str, **variables: Any) -> str:
    messages = [{"role": "user", "content": "hi"}]
    return jinja2.Environment().from_string(template).render(messages=messages, add_generation_prompt=True, **variables)


def test_thinking_is_off_by_default_and_a_request_can_turn_it_on(vllm: dict[str, ModuleType], tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(QWEN3_CHAT_TEMPLATE)
    ours = vllm["template"].with_thinking_off(tmp_path)
    off = "<think>\n\n</think>\n\n"
    assert not render(QWEN3_CHAT_TEMPLATE).endswith(off)
    assert render(ours).endswith(off)
    assert not render(ours, enable_thinking=True).endswith(off)
    assert render(ours) == render(QWEN3_CHAT_TEMPLATE, enable_thinking=False), "nothing else changes"


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"chat_template.jinja": "plain"}, False),
        ({"tokenizer_config.json": {"chat_template": "x {{ enable_thinking }}"}}, True),
        ({"tokenizer_config.json": {"chat_template": [{"name": "default", "template": "{{ enable_thinking }}"}]}}, True),
        ({"tokenizer_config.json": {"chat_template": [{"name": "tools", "template": "{{ enable_thinking }}"}]}}, False),
        ({"chat_template.jinja": "plain", "tokenizer_config.json": {"chat_template": "{{ enable_thinking }}"}}, False),
        ({"tokenizer_config.json": "{"}, False),
        ({}, False),
    ],
)
def test_only_a_template_that_knows_thinking_is_changed(
    vllm: dict[str, ModuleType], tmp_path: Path, files: dict[str, Any], found: bool
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    assert (vllm["template"].with_thinking_off(tmp_path) is not None) == found


def start(hub: FakeHub | None, home: Path, model: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`start.py download` as a process, with the huggingface_hub of this environment (the pinned image has an older one: tests/stack)."""
    own = {"PATH": os.environ["PATH"], "HOME": str(home), "QMD_MODEL": model, "QMD_PHASE_FILE": str(home / "phase.json")}
    at_hub = hub.environment(home) if hub else {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(ROOT / "vllm/start.py"), "download"]
    return subprocess.run(command, env={**own, **at_hub, **environment}, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    import numpy as np
    from safetensors.numpy import save_file

    folder = tmp_path / "repository"
    folder.mkdir()
    save_file({"weight": np.arange(200_000, dtype=np.float32)}, folder / "model.safetensors")
    for name in ("config.json", "tokenizer.json", "generation_config.json", "pytorch_model.bin", "README.md", "model.gguf"):
        (folder / name).write_text("{}")
    return folder


def test_a_download_is_recorded_as_the_embed_service_records_and_needs_no_hub_again(repository: Path, tmp_path: Path) -> None:
    with FakeHub() as hub:
        commit = hub.add("org/model", repository)
        done = start(hub, tmp_path, "org/model")
        assert done.returncode == 0, done.stderr
    pinned = Revisions(tmp_path / "hub").lookup("org/model", "main")
    assert pinned is not None
    assert pinned.commit == commit
    assert set(pinned.files) == {"config.json", "tokenizer.json", "generation_config.json", "model.safetensors"}
    snapshot = tmp_path / "hub/models--org--model/snapshots" / commit
    assert pinned.present_in(snapshot)
    assert not (snapshot / "pytorch_model.bin").exists()
    assert start(None, tmp_path, "org/model").returncode == 0


def test_what_the_hub_refuses_is_one_line_with_the_fix(repository: Path, tmp_path: Path) -> None:
    with FakeHub() as hub:
        hub.add("org/gated", repository, gated=True)
        for model, words in (("org/gated", "accept its licence"), ("no/such", "correct VLLM_MODEL"), ("not a name", "not a model's name")):
            done = start(hub, tmp_path, model)
            assert done.returncode == 1
            line = (done.stdout + done.stderr).strip().splitlines()[-1]
            assert line.startswith("qmd-vllm: error: "), done.stderr
            assert words in line
            assert "; fix: " in line
            assert "Traceback" not in done.stderr


def test_a_folder_is_taken_as_it_is(repository: Path, tmp_path: Path) -> None:
    assert start(None, tmp_path, str(repository)).returncode == 0
    done = start(None, tmp_path, "/no/such")
    assert done.returncode == 1
    assert "VLLM_MODEL=/no/such is not a folder" in done.stderr + done.stdout


def probe(folder: Path, status: int | None) -> tuple[dict[str, Any], int]:
    """The healthcheck's line and exit status where vLLM's /health answers `status`; None: nothing listens."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status or 500)
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        port = server.server_port if status else 1
        environment = {"QMD_PHASE_FILE": str(folder / "phase.json"), "QMD_HEALTH_URL": f"http://127.0.0.1:{port}/health"}
        done = subprocess.run([sys.executable, str(ROOT / "vllm/probe.py")], env=environment, capture_output=True, text=True, check=False)
        server.shutdown()
        thread.join()
    return json.loads(done.stdout), done.returncode


@pytest.mark.parametrize(
    ("status", "phase", "line", "exit_status"),
    [
        (None, {"phase": "waiting"}, {"status": "loading", "phase": "waiting"}, 1),
        (200, {"phase": "loading"}, {"status": "ok", "phase": "ready"}, 0),
        (503, {"phase": "loading"}, {"status": "loading", "phase": "loading"}, 1),
        (None, {"phase": "error", "error": "why; fix: how"}, {"status": "error", "phase": "error", "error": "why; fix: how"}, 1),
    ],
)
def test_the_healthcheck(tmp_path: Path, status: int | None, phase: dict[str, Any], line: dict[str, Any], exit_status: int) -> None:
    (tmp_path / "phase.json").write_text(json.dumps(phase))
    assert probe(tmp_path, status) == (line, exit_status)


def test_the_healthcheck_of_a_download_tells_its_bytes_and_its_stall(tmp_path: Path) -> None:
    state = {"phase": "downloading", "done_bytes": 1200, "total_bytes": 8000, "progressed": time.time() - 90}
    (tmp_path / "phase.json").write_text(json.dumps(state))
    line, exit_status = probe(tmp_path, None)
    assert 90 <= line.pop("stalled_seconds") < 120
    assert line == {"status": "loading", "phase": "downloading", "done_bytes": 1200, "total_bytes": 8000}
    assert exit_status == 1


@pytest.mark.parametrize(("status", "words"), [(503, "/health answers 503"), (None, "/health refuses connections")])
def test_what_fails_after_it_served_is_an_error_and_no_start(tmp_path: Path, status: int | None, words: str) -> None:
    (tmp_path / "phase.json").write_text(json.dumps({"phase": "loading"}))
    assert probe(tmp_path, status)[0]["status"] == "loading"
    assert probe(tmp_path, 200)[1] == 0
    line, exit_status = probe(tmp_path, status)
    assert (line["status"], line["phase"], exit_status) == ("error", "ready", 1)
    assert words in line["error"] and "restart vllm" in line["error"]
    assert probe(tmp_path, 200) == ({"status": "ok", "phase": "ready"}, 0)
