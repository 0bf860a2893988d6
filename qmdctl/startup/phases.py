"""What a container is doing now: Docker's state, the line of its healthcheck and its log become one `Phase`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from qmdctl.engine import Container
from qmdctl.terminal import human_bytes

# In the order in which a start goes through them.
ORDER = (
    *("created", "starting", "resolving", "downloading", "waiting", "loading", "compiling", "capturing", "warming"),
    *("connecting", "login", "approval", "applying", "certificate"),  # a sidecar's
    "ready",
)
WORDS = {
    "created": "created, not started yet",
    "starting": "starting",
    "resolving": "asking the hub which files the model has",
    "downloading": "downloading",
    "waiting": "waiting for embed",
    "loading": "loading weights",
    "compiling": "compiling",
    "capturing": "capturing CUDA graphs",
    "warming": "warming up",
    "connecting": "connecting to the tailnet",
    "login": "waiting for its login",
    "approval": "waiting for approval",
    "applying": "putting its serve config in force",
    "certificate": "getting its certificate",
    "ready": "ready",
    "idle": "idle, its models load with the next request",
    "unresponsive": "its engine does not answer",
    "unhealthy": "unhealthy",
    "error": "error",
    "paused": "paused",
    "exited": "exited",
    "restarting": "restarting",
    "missing": "no container",
}
STALL_SECONDS = 60.0
PROBE_NAMES = {"canary": "warming"}  # embed's own names for what is one of ours

# What vLLM's log says last. vLLM 0.12 and 0.32 on a CPU were run for these (tests/qmdctl/vllm_logs/ has what they printed); a CPU
# captures no graphs, so these lines are from GPU logs in public threads: vllm-project/vllm issues 38820, 13144 and pull request 39559.
VLLM_LOG = tuple(
    (phase, re.compile(pattern))
    for phase, pattern in (
        # "…: 100% Completed | 2/2"; "[default_loader.py:308] Loading weights took 24.84 seconds" (still to be put in place)
        ("loading", r"Starting to load model|Loading (?:fast)?safetensors checkpoint shards|Loading weights took"),
        # "Using cache directory: … for vLLM's torch.compile", "Dynamo bytecode transform time: 3.54 s", with a warm cache "Directly load"
        ("compiling", r"for vLLM's torch\.compile|Dynamo bytecode transform|Compiling a graph for|Directly load|AOT compil"),
        (
            "warming",
            r"torch\.compile (?:takes|took) .* in total|Initial profiling/warmup|Warming up model|[CG]PU KV cache size",
        ),
        ("capturing", r"Capturing CUDA graph|Profiling CUDA graph memory"),
        ("warming", r"Graph capturing finished|init engine \(profile|Starting vLLM (?:API )?server|Application startup complete"),
    )
)


@dataclass(frozen=True)
class Phase:
    """`name` is a key of WORDS. `detail`: why, for error and the like. Bytes are 0 outside downloads."""

    name: str
    detail: str = ""
    done_bytes: int = 0
    total_bytes: int = 0
    stalled_seconds: float = 0.0

    @property
    def ready(self) -> bool:
        """An idle service too: it answers whoever asks."""
        return self.name in ("ready", "idle")

    @property
    def stalled(self) -> bool:
        """A download to which no byte came for a minute: worth saying, not a failure."""
        return self.stalled_seconds >= STALL_SECONDS

    @property
    def text(self) -> str:
        """For people: "downloading 1.2 GB of 8.0 GB", "loading weights"."""
        words = WORDS.get(self.name, self.name)
        if self.name != "downloading":
            return f"{words}: {self.detail}" if self.detail else words
        if self.total_bytes:
            words += f" {human_bytes(self.done_bytes)} of {human_bytes(self.total_bytes)}"
        elif self.done_bytes:
            words += f" {human_bytes(self.done_bytes)}"
        return words + (f" (stalled: no new byte for {self.stalled_seconds:.0f} s; check the network)" if self.stalled else "")


def phase_of(container: Container | None, log: Sequence[str] = (), inside: Phase | None = None) -> Phase:
    """`log`: the last lines since the container's start; only vLLM's are read, where its healthcheck says no more than "loading".

    `inside`: of a running sidecar, what it says of itself.
    """
    if container is None:
        return Phase("missing")
    if container.state != "running":
        return _not_running(container)
    if inside is not None:
        return inside
    probe = container.probe
    # Docker calls it healthy until several checks in a row have failed; an engine that embed itself says is loading again is not ready.
    # A single late answer of a busy vLLM ("error" in phase "ready") is left to Docker's count.
    if container.health == "" or (container.health == "healthy" and probe.get("phase", "ready") == "ready"):
        return Phase("ready")
    if probe.get("status") == "error":
        return Phase("error", str(probe.get("error") or "its healthcheck says error"))
    if container.health == "unhealthy":
        return Phase("unhealthy", str(probe.get("error") or container.probe_text)[:500])
    name = str(probe.get("phase") or "starting")
    name = PROBE_NAMES.get(name, name)
    if name == "downloading":
        counts = [_number(probe.get(key)) for key in ("done_bytes", "total_bytes", "stalled_seconds")]
        return Phase(name, done_bytes=int(counts[0]), total_bytes=int(counts[1]), stalled_seconds=counts[2])
    if name == "ready":  # it answers; Docker has not counted it as healthy yet
        return Phase("warming")
    if name == "loading" and container.service == "vllm":
        return Phase(vllm_phase(log) or name)
    return Phase(name) if name in WORDS else Phase("starting", name)


def vllm_phase(log: Sequence[str]) -> str | None:
    """The phase that the last telling line of vLLM's log stands for; None while there is none."""
    for line in reversed(log):
        for phase, pattern in VLLM_LOG:
            if pattern.search(line):
                return phase
    return None


def _not_running(container: Container) -> Phase:
    if container.state in ("created", "restarting", "paused"):
        return Phase("error" if container.error else container.state, container.error)
    return Phase("exited", exit_text(container))


def exit_text(container: Container) -> str:
    """Why a container that is not running has ended, as Docker knows it."""
    if container.oom_killed:
        return f"killed by the kernel for want of memory (exit status {container.exit_code})"
    if container.error:
        return container.error
    signals = {137: "killed (SIGKILL)", 143: "ended by SIGTERM", 139: "crashed (SIGSEGV)", 134: "aborted (SIGABRT)"}
    reason = signals.get(container.exit_code)
    return f"{reason}, exit status {container.exit_code}" if reason else f"exit status {container.exit_code}"


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else 0.0
