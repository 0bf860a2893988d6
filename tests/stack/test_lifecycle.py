"""The whole stack, from `qmdctl up` with nothing there to `qmdctl down --volumes`: one stack, taken through its life in order.

Real: the engine, the images, the embed service, vLLM, the weights. FAKE: the model hub, on the engine's bridge.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from demo import smollm2
from tests.stack.conftest import PROMPT, QUESTION, TOKENS
from tests.support.hub import FakeHub
from tests.support.qmdctl_cli import docker
from tests.support.service import minilm_path, poll
from tests.support.stack_images import EMBED_IMAGE, need_engine, vllm_image
from tests.support.stack_project import Stack, bridge_address, make_project
from tests.support.texts import PLANET_COSINES, PLANETS, RED_PLANET

# The first test builds an image and loads vLLM; each later one loads vLLM at most once.
pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(900)]
EMBED_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
VLLM_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Not started yet; at the end nothing of it is left."""
    need_engine()
    image = vllm_image("0.12")
    home = tmp_path_factory.mktemp("lifecycle")
    with FakeHub(bridge_address()) as hub:
        hub.add(EMBED_MODEL, Path(minilm_path()))
        hub.add(VLLM_MODEL, smollm2.prepare())
        hub.bytes_per_second = 25e6  # a download of some seconds: the healthcheck looks every five
        values = {
            "COMPOSE_PROJECT_NAME": "qmdlife",
            "DTYPE": "float32",
            "EMBED_MODEL": EMBED_MODEL,
            "RERANK_MODEL": EMBED_MODEL,
            "VLLM_MODEL": VLLM_MODEL,
            "VLLM_IMAGE": image,
            "VLLM_MAX_MODEL_LEN": "2048",
            "HF_ENDPOINT": hub.url,
        }
        qmdctl = make_project(home / "project", home, values)
        running = Stack(qmdctl, hub)
        yield running
        running.close("qmdlife")


def answers(stack: Stack, expected: dict[str, str]) -> None:
    """All four requests of a client, with the right answers."""
    vectors = [one["embedding"] for one in stack.post("embed", "/v1/embeddings", input=[RED_PLANET, *PLANETS])["data"]]
    cosines = np.array(vectors[1:]) @ np.array(vectors[0])
    np.testing.assert_allclose(cosines, PLANET_COSINES, atol=2e-3)
    ranked = stack.post("embed", "/v1/rerank", query=RED_PLANET, documents=PLANETS)["results"]
    assert [one["index"] for one in ranked] == [1, 3, 2, 0]
    completion = stack.post("vllm", "/v1/completions", prompt=PROMPT, max_tokens=TOKENS, temperature=0)
    assert completion["choices"][0]["text"] == expected["completion"]
    for service in ("vllm", "embed"):  # directly, and forwarded
        messages = [{"role": "user", "content": QUESTION}]
        chat = stack.post(service, "/v1/chat/completions", messages=messages, max_tokens=TOKENS, temperature=0)
        assert chat["choices"][0]["message"]["content"] == expected["chat"]


def test_the_first_up_downloads_loads_and_is_ready(stack: Stack, expected: dict[str, str]) -> None:
    first = stack.up()
    assert first["status"] == "ready"
    phases = first["phases"]
    assert phases["embed"]["downloading"] > 0
    assert phases["vllm"]["downloading"] > 0
    assert phases["vllm"]["loading"] > 0
    assert [one["models"] for one in first["services"]] == [[EMBED_MODEL], [VLLM_MODEL]]
    answers(stack, expected)


def test_health_holds(stack: Stack) -> None:
    done = stack.qmdctl.run("health", "--json")
    assert (done.status, done.json["ok"]) == (0, True), done.out
    assert [link["link"] for link in done.json["links"]][-3:] == ["completion", "chat", "forwarded chat"]


def test_the_engine_allocates_with_tcmalloc(stack: Stack) -> None:
    engine = httpx.get(f"{stack.url('embed')}/health", timeout=10).json()["engine"]["pid"]
    assert "libtcmalloc_minimal" in docker("exec", "qmd-embed", "cat", f"/proc/{engine}/maps")


def test_health_names_a_vllm_that_answers_but_generates_nothing(stack: Stack) -> None:
    """The engine behind vLLM's HTTP server is stopped, as when it hangs: /health goes on saying 200."""
    rows = [row.split(maxsplit=1) for row in docker("top", "qmd-vllm", "-eo", "pid,args").splitlines()[1:]]
    (engine,) = (int(pid) for pid, command in rows if "EngineCore" in command)
    os.kill(engine, signal.SIGSTOP)
    try:
        assert httpx.get(f"{stack.url('vllm')}/health", timeout=10, trust_env=False).status_code == 200
        done = stack.qmdctl.run("health", "--json", "--timeout", "3")
    finally:
        os.kill(engine, signal.SIGCONT)
    assert done.status == 1
    broken = done.json["first_broken"]
    assert (broken["service"], broken["link"]) == ("vllm", "completion")
    assert broken["detail"].startswith("vllm answers /health but did not generate a token in 3 s")
    assert broken["fix"] == "qmdctl restart vllm"
    poll(lambda: stack.qmdctl.run("health").status == 0, 60, "health to hold again", 1)


def test_status_and_logs(stack: Stack) -> None:
    done = stack.qmdctl.run("status", "--json")
    assert (done.status, done.json["ready"]) == (0, True)
    embed, vllm = done.json["services"]
    assert (embed["image"], vllm["image"]) == (EMBED_IMAGE, "qmd-test/vllm:0.12")
    assert (embed["health"], vllm["health"]) == ("healthy", "healthy")
    logs = stack.qmdctl.run("logs", "--tail", "200").out
    assert "qmd-vllm" in logs
    assert "Application startup complete" in logs
    assert "qmd-embed" in logs


def test_a_second_up_only_says_that_it_runs(stack: Stack) -> None:
    before = docker("inspect", "--format", "{{.Id}} {{.State.StartedAt}}", "qmd-embed", "qmd-vllm")
    done = stack.qmdctl.run("up", "--json")
    assert (done.status, done.json["status"]) == (0, "running"), done.err
    assert docker("inspect", "--format", "{{.Id}} {{.State.StartedAt}}", "qmd-embed", "qmd-vllm") == before


@pytest.mark.parametrize("name", ["qmd-embed", "qmd-vllm"])
def test_a_killed_container_comes_back(stack: Stack, expected: dict[str, str], name: str) -> None:
    """`docker kill` would count as a stop by hand: the signal comes from outside."""
    pid = int(docker("inspect", "--format", "{{.State.Pid}}", name))
    os.kill(pid, signal.SIGKILL)
    poll(lambda: int(docker("inspect", "--format", "{{.State.Pid}}", name)) not in (0, pid), 30, f"{name} to be started again", 0.2)
    stack.up()
    assert docker("inspect", "--format", "{{.RestartCount}}", name) == "1"
    answers(stack, expected)


def test_stop_and_start(stack: Stack, expected: dict[str, str]) -> None:
    assert stack.qmdctl.run("stop").status == 0
    done = stack.qmdctl.run("status", "--json")
    assert done.status == 1
    assert [one["fix"] for one in done.json["services"]] == ["qmdctl start embed", "qmdctl start vllm"]
    assert stack.qmdctl.run("start").status == 0
    stack.up()
    answers(stack, expected)


def test_pause_ends_the_processes_that_hold_models_and_resume_brings_them_back(stack: Stack, expected: dict[str, str]) -> None:
    engine = httpx.get(f"{stack.url('embed')}/health", timeout=10).json()["engine"]["pid"]
    paused = stack.qmdctl.run("pause", "--json")
    assert (paused.status, paused.json["services"]) == (0, ["embed", "vllm"]), paused.err
    assert str(engine) not in docker("exec", "qmd-embed", "ls", "/proc").split()
    assert docker("inspect", "--format", "{{.State.Status}}", "qmd-embed", "qmd-vllm").split() == ["running", "exited"]
    done = stack.qmdctl.run("status", "--json")
    assert (done.status, [one["phase"] for one in done.json["services"]]) == (1, ["paused", "exited"])
    assert done.json["services"][0]["fix"] == "qmdctl resume embed"
    forwarded = httpx.post(f"{stack.url('embed')}/v1/completions", json={"prompt": PROMPT, "max_tokens": 4}, timeout=60, trust_env=False)
    assert (forwarded.status_code, forwarded.json()["error"]["code"]) == (503, "generation_unavailable")
    assert stack.qmdctl.run("pause", "embed").status == 0  # again, which changes nothing

    with stack.qmdctl.start("resume", "embed") as resuming:
        poll(lambda: httpx.get(f"{stack.url('embed')}/health", timeout=10).json()["status"] != "paused", 60, "a load", 0.2)
        resuming.send_signal(signal.SIGINT)
        resuming.communicate(timeout=60)
    assert resuming.returncode in (0, 130)  # it loads in a second where the machine is quick
    resumed = stack.qmdctl.run("resume", "--json", seconds=600)
    assert (resumed.status, resumed.json["status"]) == (0, "ready"), resumed.err
    answers(stack, expected)


def test_restart_of_one_service(stack: Stack, expected: dict[str, str]) -> None:
    before = docker("inspect", "--format", "{{.State.StartedAt}}", "qmd-embed", "qmd-vllm").split()
    assert stack.qmdctl.run("restart", "embed").status == 0
    stack.up()
    after = docker("inspect", "--format", "{{.State.StartedAt}}", "qmd-embed", "qmd-vllm").split()
    assert after[0] != before[0]
    assert after[1] == before[1]
    answers(stack, expected)


def test_a_model_that_the_hub_does_not_know_is_told_early(stack: Stack) -> None:
    stack.qmdctl.set(EMBED_MODEL="no/such")
    done = stack.qmdctl.run("up", "--skip-checks", "embed")
    stack.qmdctl.set(EMBED_MODEL=EMBED_MODEL)
    assert done.status == 1, done.err
    assert "no/such" in done.err
    assert "✗ embed: " in done.err
    assert stack.qmdctl.run("status").status == 1


def test_down_keeps_the_models_and_the_next_up_is_warm_and_needs_no_hub(stack: Stack, expected: dict[str, str]) -> None:
    assert stack.qmdctl.run("down").status == 0
    assert docker("ps", "--all", "--quiet", "--filter", "label=com.docker.compose.project=qmdlife") == ""
    stack.hub.close()
    again = stack.up()
    assert again["status"] == "ready"
    for phases in again["phases"].values():
        assert "downloading" not in phases
    answers(stack, expected)


def test_down_with_volumes_removes_them(stack: Stack) -> None:
    asked = stack.qmdctl.run("down", "--volumes")
    assert asked.status == 2
    assert "--yes" in asked.err
    volumes = ("volume", "ls", "--quiet", "--filter", "label=com.docker.compose.project=qmdlife")
    assert len(docker(*volumes).split()) == 2
    assert stack.qmdctl.run("down", "--volumes", "--yes").status == 0
    assert docker(*volumes) == ""
    assert docker("network", "ls", "--quiet", "--filter", "label=com.docker.compose.project=qmdlife") == ""
