"""`qmdctl init`: from hardware to .env. FAKE: nvidia-smi, a script that prints what the real one would; no GPU is here."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import resource
import select
import shutil
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from demo.processes import ROOT
from qmdctl import api_keys, env_file
from qmdctl.commands.init import secret_there, write_secrets
from qmdctl.errors import ConfigurationError
from qmdctl.project import Project
from tests.qmdctl.conftest import Run
from tests.qmdctl.machines import SPARK, card
from tests.support.require import require

OTHER = 65_534


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
    stored = (clone / "secrets/api_keys").read_text()
    key = done.stdout.rpartition("API key, shown this once: ")[2].strip()
    assert hashlib.sha256(key.encode()).hexdigest() in stored
    assert key not in stored + done.stderr
    assert "hf_secret" not in done.stdout + done.stderr
    again = qmdctl("-C", str(clone), "init", "--cpu", "--api-key", "--yes")
    assert (clone / "secrets/api_keys").read_text() == stored, "a key that clients have is not replaced"
    assert "qmd_" not in again.stdout + again.stderr


def test_a_key_file_that_env_does_not_name_locks_the_service_too(qmdctl: Run, clone: Path) -> None:
    (clone / "secrets/api_keys").write_text("my-own-key\n")
    done = qmdctl("-C", str(clone), "init", "--cpu", "--api-key")
    assert values(clone)["API_KEYS_FILE"] == "./secrets/api_keys"
    assert (clone / "secrets/api_keys").read_text() == "my-own-key\n"
    assert "A key was there and is kept" in done.stderr
    assert "my-own-key" not in done.stdout + done.stderr


@pytest.mark.parametrize("content", ["", "\n", "# one per line\n", "# without an end", "sha256:abc\n"])
def test_a_key_file_without_a_key_gets_one(qmdctl: Run, clone: Path, content: str) -> None:
    """An empty file would let nobody in."""
    (clone / "secrets/api_keys").write_text(content)
    done = qmdctl("-C", str(clone), "init", "--cpu", "--api-key", "--json")
    assert done.returncode == 0, done.stderr
    stored = (clone / "secrets/api_keys").read_text()
    assert stored.startswith(content)
    assert hashlib.sha256(json.loads(done.stdout)["api_key"].encode()).hexdigest() in stored


def test_a_key_that_nobody_has_seen_is_taken_back(clone: Path, qmdctl: Run) -> None:
    """.env cannot be written: it is a link to a folder that is not there."""
    (clone / ".env").symlink_to(clone / "no-such-folder/.env")
    done = qmdctl("-C", str(clone), "init", "--cpu", "--api-key", "--json")
    assert done.returncode == 2, done.stderr
    assert api_keys.read(clone / "secrets/api_keys").keys == []


def test_behind_sudo_everything_is_the_users(qmdctl: Run, clone: Path, tmp_path: Path) -> None:
    require("root", os.geteuid() == 0, "only root can give files away")
    (clone / "secrets").rmdir()
    (tmp_path / "token").write_text("hf_secret\n")
    arguments = ["-C", str(clone), "init", "--cpu", "--api-key", "--hf-token-file", str(tmp_path / "token")]
    assert qmdctl(*arguments, SUDO_UID=str(OTHER), SUDO_GID=str(OTHER)).returncode == 0
    for name in (".env", "secrets", "secrets/api_keys", "secrets/hf_token"):
        about = (clone / name).stat()
        assert (name, about.st_uid, about.st_gid) == (name, OTHER, OTHER)
    assert (values(clone)["QMD_UID"], values(clone)["QMD_GID"]) == (str(OTHER), str(OTHER))
    assert qmdctl("-C", str(clone), "init", "--preset", "8", "--yes").returncode == 0
    assert (clone / ".env").stat().st_uid == OTHER, "root keeps the owner"


@contextmanager
def other_user(folder: Path) -> Iterator[None]:
    """Another user's eyes on a folder that is root's."""
    require("root", os.geteuid() == 0, "only root can act as another user")
    for above in (folder, *folder.parents[:3]):
        above.chmod(above.stat().st_mode | 0o055)
    os.seteuid(OTHER)
    try:
        yield
    finally:
        os.seteuid(0)


def test_files_of_roots_name_the_command_that_gives_them_back(clone: Path) -> None:
    project, path = Project(clone, "test"), clone / "secrets/api_keys"
    path.write_text("key\n")
    path.chmod(0o600)
    (clone / ".env").write_text("A=1\n")
    (clone / ".env").chmod(0o600)
    with other_user(clone):
        refusals = []
        for act in (
            lambda: env_file.read(clone / ".env"),
            lambda: env_file.write(clone / ".env", "A=2\n"),
            lambda: secret_there(project, "API_KEYS_FILE"),
            lambda: write_secrets(project, {"API_KEYS_FILE": "new\n"}),
        ):
            with pytest.raises(ConfigurationError, match="Permission denied") as caught:
                act()
            refusals.append(caught.value.fix)
    assert all(fix.startswith(f"sudo chown {OTHER}:") for fix in refusals)
    assert [fix.split()[-1] for fix in refusals] == [str(clone / ".env")] * 2 + [str(path)] * 2
    assert path.read_text() == "key\n"


def test_secrets_that_cannot_be_a_folder_are_named(qmdctl: Run, clone: Path) -> None:
    (clone / "secrets").rmdir()
    (clone / "secrets").write_text("")
    done = qmdctl("-C", str(clone), "init", "--cpu", "--api-key")
    assert done.returncode == 2
    assert "secrets/api_keys cannot be read: Not a directory" in done.stderr
    assert "Traceback" not in done.stderr


@contextmanager
def engine(folder: Path, *security: str) -> Iterator[str]:
    """FAKE: an engine that answers `docker info` alone; where root's is, no rootless one can be started."""
    answers = {"version": {"ApiVersion": "1.47", "MinAPIVersion": "1.24"}, "info": {"SecurityOptions": list(security)}}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(answers[self.path.rpartition("/")[2]]).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with socketserver.ThreadingUnixStreamServer(str(folder / "docker.sock"), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"unix://{folder}/docker.sock"
        finally:
            server.shutdown()


def test_on_a_rootless_engine_the_containers_run_as_0_who_is_the_user(qmdctl: Run, clone: Path, tmp_path: Path) -> None:
    with engine(tmp_path, "name=seccomp,profile=builtin", "name=rootless") as host:
        done = qmdctl("-C", str(clone), "init", "--cpu", "--api-key", DOCKER_HOST=host)
    assert done.returncode == 0, done.stderr
    written = values(clone)
    assert (written["QMD_UID"], written["QMD_GID"]) == ("0", "0")
    assert "Docker runs rootless" in done.stderr
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    assert written.get("MEMLOCK_BYTES") == (None if limit == resource.RLIM_INFINITY else str(limit))
    assert (clone / "secrets/api_keys").stat().st_uid == (os.getuid() or 1000), "the file is the user's, not the container's number"


def test_on_roots_engine_they_run_as_the_user(qmdctl: Run, clone: Path, tmp_path: Path) -> None:
    with engine(tmp_path, "name=seccomp,profile=builtin") as host:
        done = qmdctl("-C", str(clone), "init", "--cpu", DOCKER_HOST=host)
    assert values(clone)["QMD_UID"] == str(os.getuid() or 1000)
    assert "MEMLOCK_BYTES" not in values(clone)
    assert "rootless" not in done.stderr


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
    """The preset, whether on a tailnet, then whether to write; "n" writes nothing, "y" does."""
    assert converse(clone, tmp_path, ["8", "n", "n"])[0] == 130
    assert not (clone / ".env").exists()
    assert converse(clone, tmp_path, ["cpu", "n", "y"])[0] == 0
    assert values(clone)["COMPOSE_FILE"] == "compose.yaml:compose.cpu.yaml"


def test_on_a_terminal_it_asks_for_the_cache_and_ctrl_c_writes_nothing(clone: Path, tmp_path: Path) -> None:
    (tmp_path / ".cache/huggingface/hub").mkdir(parents=True)
    assert converse(clone, tmp_path, ["8", "\x04"])[0] == 130  # an end of file, which typer takes as it takes Ctrl-C
    assert not (clone / ".env").exists()
    assert converse(clone, tmp_path, ["cpu", "y", "n", "y"])[0] == 0
    assert values(clone)["HF_CACHE_DIR"] == str(tmp_path / ".cache/huggingface")


def converse(folder: Path, home: Path, answers: list[str], *arguments: str) -> tuple[int, str]:
    """Run init, or what is given, on a pseudo-terminal and answer each question as it comes; the exit status and all that it said."""
    reader, writer = pty.openpty()
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": str(ROOT), "TERM": "xterm"}
    command = [sys.executable, "-m", "qmdctl", "-C", str(folder), *(arguments or ["init"])]
    process = subprocess.Popen(command, stdin=writer, stdout=writer, stderr=writer, env=environment, cwd=home, start_new_session=True)
    os.close(writer)
    said, whole, waiting, end = "", "", list(answers), time.monotonic() + 60
    while time.monotonic() < end:
        if select.select([reader], [], [], 0.1)[0]:
            try:
                part = os.read(reader, 4096)
            except OSError:
                break
            said += part.decode(errors="replace")
            whole += part.decode(errors="replace")
            if waiting and said.endswith("]: "):  # the space comes last, when a hidden answer is no longer shown
                os.write(reader, f"{waiting.pop(0)}\n".encode())
                said = ""
        elif process.poll() is not None:
            break
    os.close(reader)
    return process.wait(10), whole
