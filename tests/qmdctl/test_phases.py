"""A container's state, its healthcheck's line and its log become the right phase."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmdctl.engine import Container
from qmdctl.startup.phases import ORDER, phase_of, vllm_phase
from tests.qmdctl.containers import container, probing

LOGS = Path(__file__).parent / "vllm_logs"


@pytest.mark.parametrize(
    ("seen", "phase"),
    [
        (None, "missing"),
        (container(state="created", health=""), "created"),
        (container(state="created", health="", error="driver failed: address already in use"), "error"),
        (container(), "starting"),
        (probing(phase="resolving"), "resolving"),
        (probing(phase="loading"), "loading"),
        (probing(phase="canary"), "warming"),
        (probing(phase="unresponsive"), "unresponsive"),
        (probing("vllm", phase="waiting"), "waiting"),
        (container(health="healthy"), "ready"),
        (container(health="healthy", probe={"status": "ok", "phase": "ready"}), "ready"),
        (container(health="healthy", probe={"status": "loading", "phase": "loading"}), "loading"),
        (container(health="healthy", probe={"status": "error", "phase": "error"}), "error"),
        (container("vllm", health="healthy", probe={"status": "error", "phase": "ready"}), "ready"),
        (container(probe={"status": "ok", "phase": "ready"}), "warming"),
        (container(probe={"status": "error", "phase": "error", "error": "no such model"}), "error"),
        (container(health="unhealthy", probe_text="timed out"), "unhealthy"),
        (container(state="exited", health="unhealthy", exit_code=1), "exited"),
        (container(state="dead", health=""), "exited"),
        (container(state="restarting", exit_code=1), "restarting"),
        (container(state="paused", health="healthy"), "paused"),
        (container(probe_text="python: command not found"), "starting"),
    ],
)
def test_phase_of_a_container(seen: Container | None, phase: str) -> None:
    assert phase_of(seen).name == phase


def test_a_download_has_bytes_and_says_when_it_stalls() -> None:
    phase = phase_of(probing(phase="downloading", done_bytes=1_200_000_000, total_bytes=8_000_000_000, stalled_seconds=2))
    assert (phase.text, phase.stalled) == ("downloading 1.2 GB of 8.0 GB", False)
    stalled = phase_of(probing(phase="downloading", done_bytes=5, total_bytes=10, stalled_seconds=61))
    assert stalled.stalled
    assert stalled.text == "downloading 5 B of 10 B (stalled: no new byte for 61 s; check the network)"


def test_counts_that_are_none_do_not_matter() -> None:
    phase = phase_of(probing(phase="downloading", done_bytes=None, total_bytes="many", stalled_seconds=-3))
    assert (phase.done_bytes, phase.total_bytes, phase.stalled_seconds) == (0, 0, 0.0)
    assert phase.text == "downloading"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"exit_code": 1}, "exited: exit status 1"),
        ({"exit_code": 137, "oom_killed": True}, "exited: killed by the kernel for want of memory (exit status 137)"),
        ({"exit_code": 137}, "exited: killed (SIGKILL), exit status 137"),
        ({"exit_code": 127, "error": "exec: no such file"}, "exited: exec: no such file"),
    ],
)
def test_an_end_is_told_with_its_reason(fields: dict[str, object], text: str) -> None:
    assert phase_of(container(state="exited", health="", **fields)).text == text


@pytest.mark.parametrize("version", ["0.12", "0.32"])
def test_a_real_start_of_vllm_goes_through_its_phases_in_order(version: str) -> None:
    lines = (LOGS / f"{version}.txt").read_text("utf-8").splitlines()
    seen: list[str] = []
    for end in range(1, len(lines) + 1):
        phase = vllm_phase(lines[:end])
        if phase and (not seen or seen[-1] != phase):
            seen.append(phase)
    assert seen == ["loading", "warming"]  # eager: nothing is compiled or captured
    assert "Application startup complete" in lines[-1]


@pytest.mark.parametrize(
    ("line", "phase"),
    [
        # GPU logs in vllm-project/vllm#38820, #39559 and #13144; shortened.
        ("Loading safetensors checkpoint shards:  56% Completed | 5/9 [00:13<00:11,  2.87s/it]", "loading"),
        ("(Worker_TP0 pid=34322) INFO 05-06 20:59:57 [default_loader.py:384] Loading weights took 24.84 seconds", "loading"),
        ("INFO 05-06 21:00:16 [backends.py:1069] Using cache directory: /x/torch_compile_cache for vLLM's torch.compile", "compiling"),
        ("INFO 05-06 21:00:16 [backends.py:1128] Dynamo bytecode transform time: 3.54 s", "compiling"),
        ("INFO 04-13 22:09:34 [backends.py:286] Directly load the compiled graph(s) for compile range (1, 2048)", "compiling"),
        ("INFO 04-13 22:09:34 [monitor.py:48] torch.compile took 1.61 s in total", "warming"),
        ("INFO 02-18 04:51:47 monitor.py:31] torch.compile takes 5.96 s in total", "warming"),
        ("INFO 04-13 22:09:35 [gpu_model_runner.py:5914] Profiling CUDA graph memory: PIECEWISE=51 (largest=512)", "capturing"),
        ("INFO 04-13 22:09:35 [x.py:1] something else", None),
    ],
)
def test_lines_of_a_gpu_start(line: str, phase: str | None) -> None:
    assert vllm_phase([line]) == phase


def test_the_log_refines_only_vllms_loading() -> None:
    log = ["Dynamo bytecode transform time: 3.54 s"]
    assert phase_of(probing("vllm", phase="loading"), log).name == "compiling"
    assert phase_of(probing("vllm", phase="downloading"), log).name == "downloading"
    assert phase_of(probing("embed", phase="loading"), log).name == "loading"
    assert phase_of(probing("vllm", phase="loading"), []).name == "loading"


def test_every_phase_of_a_start_has_words() -> None:
    from qmdctl.startup.phases import WORDS

    assert set(ORDER) <= WORDS.keys()
