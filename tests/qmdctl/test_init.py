"""`qmdctl init`: from hardware to .env. FAKE: nvidia-smi, a script that prints what the real one would; no GPU is here."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from demo.processes import ROOT
from qmdctl import env_file
from tests.qmdctl.conftest import Run
from tests.qmdctl.machines import SPARK, card


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The project's own files that init reads."""
    folder = tmp_path / "clone"
    (folder / "secrets").mkdir(parents=True)
    for name in ("compose.yaml", "compose.cpu.yaml", ".env.example", "Dockerfile.embed"):
        shutil.copy(ROOT / name, folder)
    return folder


def with_gpus(folder: Path, *rows: str) -> dict[str, str]:
    """An environment whose nvidia-smi lists these."""
    script = folder / "bin/nvidia-smi"
    script.parent.mkdir(exist_ok=True)
    script.write_text("#!/bin/sh\ncat <<'END'\n" + "\n".join(rows) + "\nEND\n")
    script.chmod(0o755)
    return {"PATH": f"{script.parent}:{os.environ['PATH']}"}


def values(folder: Path) -> dict[str, str]:
    return env_file.read(folder / ".env").check().values


@pytest.mark.parametrize(
    ("rows", "preset", "reranker"),
    [
        ([card("NVIDIA GeForce RTX 4090", 24564)], "24", "Qwen/Qwen3-Reranker-0.6B"),
        ([card("NVIDIA GeForce RTX 3060", 12288)], "12", "Qwen/Qwen3-Reranker-0.6B"),
        ([card("NVIDIA GeForce RTX 3060 Ti", 8192)], "8", "Qwen/Qwen3-Reranker-0.6B"),
        ([], "cpu", "Qwen/Qwen3-Reranker-0.6B"),
    ],
)
def test_the_hardware_decides(qmdctl: Run, clone: Path, rows: list[str], preset: str, reranker: str) -> None:
    environment = with_gpus(clone, *rows) if rows else {}
    done = qmdctl("-C", str(clone), "init", "--json", **environment)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["preset"] == preset
    assert answer["written"] == [str(clone / ".env")]
    written = values(clone)
    assert written["RERANK_MODEL"] == reranker
    assert written["COMPOSE_FILE"] == ("compose.yaml" if rows else "compose.yaml:compose.cpu.yaml")
    assert written["QMD_UID"] == str(os.getuid() or 1000)
    assert "Expected, by estimate:" in done.stderr
    assert "not measured by this project" in done.stderr
    assert qmdctl("-C", str(clone), "config", "--json").returncode == 0


def test_unified_memory_gets_the_spark_preset(qmdctl: Run, clone: Path) -> None:
    """How much memory the machine has is this one's own, so whether it fits is not asked here."""
    answer = json.loads(qmdctl("-C", str(clone), "init", "--preset", "spark", "--json", **with_gpus(clone, SPARK)).stdout)
    assert answer["hardware"]["unified_memory"] is True
    assert answer["values"]["RERANK_MODEL"] == "Qwen/Qwen3-Reranker-4B"


def test_two_equal_cards_take_one_service_each(qmdctl: Run, clone: Path) -> None:
    rows = [card("NVIDIA GeForce RTX 4090", 24564), card("NVIDIA GeForce RTX 4090", 24564, index=1)]
    qmdctl("-C", str(clone), "init", **with_gpus(clone, *rows))
    assert (values(clone)["EMBED_GPU"], values(clone)["VLLM_GPU"]) == ("0", "1")


@pytest.mark.parametrize(
    ("mib", "gpus"),
    [
        ((2048, 24564), ("1", "1")),
        ((24564, 12288), ("0", "0")),
        ((2048, 24564, 24564), ("1", "2")),
    ],
)
def test_of_different_cards_the_largest_is_named(qmdctl: Run, clone: Path, mib: tuple[int, ...], gpus: tuple[str, str]) -> None:
    """The preset is the largest card's; without its number Docker would take GPU 0."""
    rows = [card("NVIDIA card", size, index=index) for index, size in enumerate(mib)]
    answer = json.loads(qmdctl("-C", str(clone), "init", "--json", **with_gpus(clone, *rows)).stdout)
    assert (answer["preset"], answer["fits"]) == ("24", True)
    assert (values(clone)["EMBED_GPU"], values(clone)["VLLM_GPU"]) == gpus
    assert all(f"GPU {gpu} " in " ".join(answer["memory"]) for gpu in gpus)


def test_a_single_card_that_is_not_gpu_0_is_named(qmdctl: Run, clone: Path) -> None:
    qmdctl("-C", str(clone), "init", **with_gpus(clone, card("NVIDIA GeForce RTX 4090", 24564, index=1)))
    assert (values(clone)["EMBED_GPU"], values(clone)["VLLM_GPU"]) == ("1", "1")


def test_flags_win_and_generation_elsewhere_turns_vllm_off(qmdctl: Run, clone: Path, tmp_path: Path) -> None:
    cache = tmp_path / "hf"
    cache.mkdir()
    arguments = [
        "--cpu",
        "--embed-model",
        "nomic-ai/nomic-embed-text-v1.5",
        "--generation-url",
        "http://other:11434",
        "--hf-cache",
        str(cache),
    ]
    assert qmdctl("-C", str(clone), "init", *arguments).returncode == 0
    written = values(clone)
    assert written["EMBED_MODEL"] == "nomic-ai/nomic-embed-text-v1.5"
    assert (written["COMPOSE_PROFILES"], written["GENERATION_URL"]) == ("", "http://other:11434")
    assert written["HF_CACHE_DIR"] == str(cache)
    assert "VLLM_MODEL" not in written


def test_secrets_are_files_for_their_owner_alone(qmdctl: Run, clone: Path, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("hf_secret\n")
    done = qmdctl("-C", str(clone), "init", "--cpu", "--hf-token-file", str(token), "--api-key")
    assert done.returncode == 0, done.stderr
    written = values(clone)
    assert (written["HF_TOKEN_FILE"], written["API_KEYS_FILE"]) == ("./secrets/hf_token", "./secrets/api_keys")
    for name in ("hf_token", "api_keys"):
        about = (clone / "secrets" / name).stat()
        assert about.st_mode & 0o777 == 0o600
        assert str(about.st_uid) == written["QMD_UID"]
    key = (clone / "secrets/api_keys").read_text().strip()
    assert len(key) >= 40
    assert "hf_secret" not in done.stdout + done.stderr
    qmdctl("-C", str(clone), "init", "--cpu", "--api-key", "--yes")
    assert (clone / "secrets/api_keys").read_text().strip() == key, "a key that clients have is not replaced"


def test_a_token_that_is_there_is_replaced_only_when_agreed_to(qmdctl: Run, clone: Path, tmp_path: Path) -> None:
    token, stored = tmp_path / "token", clone / "secrets/hf_token"
    arguments = ["-C", str(clone), "init", "--cpu", "--hf-token-file", str(token)]
    token.write_text("hf_first\n")
    assert qmdctl(*arguments).returncode == 0
    assert json.loads(qmdctl(*arguments, "--json").stdout)["written"] == [], "the same token is no change"
    token.write_text("hf_second\n")
    done = qmdctl(*arguments)
    assert done.returncode == 2
    assert "secrets/hf_token holds another value" in done.stderr
    assert "--yes" in done.stderr
    assert "hf_" not in (done.stdout + done.stderr).replace("hf_token", "")
    assert stored.read_text() == "hf_first\n"
    stored.chmod(0o644)
    assert qmdctl(*arguments, "--yes").returncode == 0
    assert (stored.read_text(), stored.stat().st_mode & 0o777) == ("hf_second\n", 0o600)


def test_generation_here_again_takes_the_other_server_away(qmdctl: Run, clone: Path) -> None:
    qmdctl("-C", str(clone), "init", "--cpu", "--generation-url", "http://other:11434")
    assert qmdctl("-C", str(clone), "init", "--cpu", "--yes").returncode == 0
    written = values(clone)
    assert written["COMPOSE_PROFILES"] == "generation"
    assert "GENERATION_URL" not in written


def test_an_existing_env_is_changed_only_after_its_difference_was_agreed_to(qmdctl: Run, clone: Path) -> None:
    (clone / ".env").write_text("# mine\nEMBED_MODEL=my/own\nEMBED_PORT=9001\nMY_TOKEN=very-secret\n")
    before = (clone / ".env").read_text()
    done = qmdctl("-C", str(clone), "init", "--cpu")
    assert done.returncode == 2
    assert "-EMBED_MODEL=my/own" in done.stderr
    assert "+EMBED_MODEL=Qwen/Qwen3-Embedding-0.6B" in done.stderr
    assert "--yes" in done.stderr
    assert "very-secret" not in done.stderr
    assert (clone / ".env").read_text() == before
    assert qmdctl("-C", str(clone), "init", "--cpu", "--yes").returncode == 0
    written = values(clone)
    assert (written["EMBED_PORT"], written["MY_TOKEN"]) == ("9001", "very-secret")
    assert (clone / ".env").read_text().startswith("# mine\n")
    again = json.loads(qmdctl("-C", str(clone), "init", "--cpu", "--json").stdout)
    assert (again["changed"], again["written"]) == (False, [])


def test_another_preset_takes_the_keys_of_the_first_away(qmdctl: Run, clone: Path) -> None:
    qmdctl("-C", str(clone), "init", "--preset", "24")
    assert values(clone)["EMBED_MEMORY_GB"] == "11.5"
    qmdctl("-C", str(clone), "init", "--preset", "cpu", "--yes")
    assert "EMBED_MEMORY_GB" not in values(clone)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--preset", "huge"], "--preset takes one of spark"),
        (["--hf-token-file", "/no/such"], "/no/such cannot be read"),
        (["--hf-cache", "/no/such"], "/no/such is not a folder"),
    ],
)
def test_bad_flags_name_the_flag_and_the_fix(qmdctl: Run, clone: Path, arguments: list[str], words: str) -> None:
    done = qmdctl("-C", str(clone), "init", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert not (clone / ".env").exists()


def test_on_a_terminal_it_asks(clone: Path, tmp_path: Path) -> None:
    """The preset, then whether to write; "n" writes nothing, "y" does."""
    assert converse(clone, tmp_path, ["8", "n"]) == 130
    assert not (clone / ".env").exists()
    assert converse(clone, tmp_path, ["cpu", "y"]) == 0
    assert values(clone)["COMPOSE_FILE"] == "compose.yaml:compose.cpu.yaml"


def test_on_a_terminal_it_asks_for_the_cache_and_ctrl_c_writes_nothing(clone: Path, tmp_path: Path) -> None:
    (tmp_path / ".cache/huggingface/hub").mkdir(parents=True)
    assert converse(clone, tmp_path, ["8", "\x04"]) == 130  # an end of file, which typer takes as it takes Ctrl-C
    assert not (clone / ".env").exists()
    assert converse(clone, tmp_path, ["cpu", "y", "y"]) == 0
    assert values(clone)["HF_CACHE_DIR"] == str(tmp_path / ".cache/huggingface")


def converse(folder: Path, home: Path, answers: list[str]) -> int:
    """Run init on a pseudo-terminal, answer each question as it comes, and return the exit status."""
    reader, writer = pty.openpty()
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": str(ROOT), "TERM": "xterm"}
    command = [sys.executable, "-m", "qmdctl", "-C", str(folder), "init"]
    process = subprocess.Popen(command, stdin=writer, stdout=writer, stderr=writer, env=environment, cwd=home)
    os.close(writer)
    said, waiting, end = "", list(answers), time.monotonic() + 60
    while time.monotonic() < end:
        if select.select([reader], [], [], 0.1)[0]:
            try:
                part = os.read(reader, 4096)
            except OSError:
                break
            said += part.decode(errors="replace")
            if waiting and said.rstrip(" ").endswith(("]:", "]: ")):
                os.write(reader, f"{waiting.pop(0)}\n".encode())
                said = ""
        elif process.poll() is not None:
            break
    os.close(reader)
    return process.wait(10)
