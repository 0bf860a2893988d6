"""compose.yaml as it is for a GPU box, unchanged, brought up with `docker compose` alone and by a user id of its own.

Real: the engine, the images, embed, vLLM 0.12 under the pinned image's name. FAKE: the GPU (a stand-in for NVIDIA's runtime hook lets
Docker accept the reservation; DEVICE=cpu, and vLLM's build for CPUs), and the model hub.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.stack.generation import NO_THINKING, chat_prompt
from tests.support.checkpoints import QWEN3_CHAT_TEMPLATE, checkpoint
from tests.support.hub import FakeHub
from tests.support.qmdctl_cli import DOCKER_HOST, docker, said
from tests.support.service import ROOT, minilm_path, poll
from tests.support.stack_images import embed_image, need_engine, vllm_image
from tests.support.stack_project import Stack, bridge_address, make_project

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(900)]
PINNED = "nvcr.io/nvidia/vllm:25.12.post1-py3"
EMBED_MODEL, VLLM_MODEL = "sentence-transformers/all-MiniLM-L6-v2", "Qwen/Qwen3-Tiny"
UID = 4242  # not the image's own


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    need_engine()
    embed_image()
    docker("tag", vllm_image("0.12"), PINNED)
    home = tmp_path_factory.mktemp("gpu")
    with FakeHub(bridge_address()) as hub:
        hub.add(EMBED_MODEL, Path(minilm_path()))
        hub.add(VLLM_MODEL, checkpoint("qwen3-chat"))
        hub.tokens["hf_secret"] = set()
        token = home / "project/secrets/token"
        values = {
            "COMPOSE_PROJECT_NAME": "qmdgpu",
            "COMPOSE_FILE": "compose.yaml",
            "QMD_UID": str(UID),
            "QMD_GID": str(UID),
            "DEVICE": "cpu",
            "DTYPE": "float32",
            "EMBED_MODEL": EMBED_MODEL,
            "RERANK_MODEL": EMBED_MODEL,
            "VLLM_MODEL": VLLM_MODEL,
            "VLLM_DTYPE": "float32",
            "VLLM_KV_CACHE_GB": "1",
            "VLLM_ENFORCE_EAGER": "true",
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN_FILE": "./secrets/token",
        }
        running = Stack(make_project(home / "project", home, values), hub)
        token.write_text("hf_secret\n")
        token.chmod(0o600)
        if os.getuid() == 0:
            os.chown(token, UID, UID)
        try:
            compose(running, "up", "--detach")
            ready(running)
            yield running
        finally:
            running.close("qmdgpu")
            docker("rmi", PINNED)


def compose(stack: Stack, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`docker compose …` in the project's folder, as a user without qmdctl types it."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(stack.qmdctl.home), "DOCKER_HOST": DOCKER_HOST}
    command = ["docker", "compose", *arguments]
    done = subprocess.run(command, cwd=stack.qmdctl.folder, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done


def ready(stack: Stack, seconds: float = 240) -> None:
    def both() -> bool:
        states = [json.loads(line) for line in docker("inspect", "--format", "{{json .State}}", "qmd-embed", "qmd-vllm").splitlines()]
        return all(state.get("Health", {}).get("Status") == "healthy" for state in states)

    poll(both, seconds, "both containers to be healthy", 0.5)


def inspect(name: str) -> dict[str, Any]:
    (found,) = json.loads(docker("inspect", name))
    assert isinstance(found, dict)
    return found


def test_the_compose_file_is_the_project_s_own(stack: Stack) -> None:
    assert (stack.qmdctl.folder / "compose.yaml").read_bytes() == (ROOT / "compose.yaml").read_bytes()
    done = compose(stack, "config", "--quiet")
    assert done.stderr == "", "no warning"


def test_each_service_can_have_a_gpu_of_its_own(stack: Stack) -> None:
    stack.qmdctl.set(EMBED_GPU="0", VLLM_GPU="GPU-1")
    services = json.loads(compose(stack, "config", "--format", "json").stdout)["services"]
    stack.qmdctl.set(VLLM_GPU="0")
    devices = {name: one["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"] for name, one in services.items()}
    assert devices == {"embed": ["0"], "vllm": ["GPU-1"]}


def test_a_secret_that_moves_to_another_file_reaches_the_container(stack: Stack) -> None:
    """Compose's own hash of a service does not hold the file's name; a label does."""
    hashes = compose(stack, "config", "--hash", "*").stdout
    stack.qmdctl.set(HF_TOKEN_FILE="./secrets/none")
    moved = compose(stack, "config", "--hash", "*").stdout
    stack.qmdctl.set(HF_TOKEN_FILE="./secrets/token")
    assert not set(moved.splitlines()) & set(hashes.splitlines())


@pytest.mark.parametrize("name", ["qmd-embed", "qmd-vllm"])
def test_containers_are_confined(stack: Stack, name: str) -> None:
    found = inspect(name)
    host, config = found["HostConfig"], found["Config"]
    assert config["User"] == f"{UID}:{UID}"
    assert not host["Privileged"]
    assert host["CapDrop"] == ["ALL"]
    assert not host["CapAdd"]
    assert "no-new-privileges:true" in host["SecurityOpt"]
    assert host["ReadonlyRootfs"]
    assert host["RestartPolicy"]["Name"] == "unless-stopped"
    assert host["LogConfig"]["Config"] == {"max-file": "3", "max-size": "10m"}
    (gpu,) = host["DeviceRequests"]
    assert (gpu["Driver"], gpu["DeviceIDs"], gpu["Capabilities"]) == ("nvidia", ["0"], [["gpu"]])
    assert config["Healthcheck"]["StartPeriod"] == 24 * 3600 * 10**9, "a first download may take a night"
    assert host["ShmSize"] >= 10**9
    assert {limit["Name"] for limit in host["Ulimits"]} == {"memlock", "stack"}
    published = [binding["HostIp"] for bindings in found["NetworkSettings"]["Ports"].values() for binding in bindings or []]
    assert published
    assert set(published) == {"127.0.0.1"}
    assert not any("hf_secret" in line for line in config["Env"])
    root = next(line.split() for line in docker("exec", name, "cat", "/proc/self/mountinfo").splitlines() if line.split()[4] == "/")
    assert "ro" in root[5].split(",")
    assert docker("exec", name, "cat", "/run/secrets/hf_token") == "hf_secret"
    assert docker("exec", name, "id", "-u") == str(UID)


def test_internal_networks_reach_nothing_outside_but_egress_does(stack: Stack) -> None:
    networks = set(inspect("qmd-vllm")["NetworkSettings"]["Networks"])
    assert networks == {"qmdgpu_edge-vllm", "qmdgpu_backend", "qmdgpu_egress"}
    internal = docker("network", "inspect", "--format", "{{.Name}} {{.Internal}}", *sorted(networks)).splitlines()
    assert internal == ["qmdgpu_backend true", "qmdgpu_edge-vllm true", "qmdgpu_egress false"]


def test_everything_answers(stack: Stack) -> None:
    assert len(stack.post("embed", "/v1/embeddings", input=["a note"])["data"][0]["embedding"]) == 384
    assert len(stack.post("embed", "/v1/rerank", query="a", documents=["b", "c"])["results"]) == 2
    for service in ("vllm", "embed"):
        answer = stack.post(service, "/v1/chat/completions", messages=[{"role": "user", "content": "/no_think hello"}], max_tokens=4)
        assert answer["usage"]["completion_tokens"] == 4
    log = docker("logs", "qmd-vllm")
    assert "nvidia_entrypoint: vllm" in log, "NVIDIA's own wrapper was gone through"


def test_qmdctl_takes_it_through_its_life_as_well(stack: Stack) -> None:
    """The checks are left out: there is no GPU, and they say so."""
    said_running = stack.qmdctl.run("up", "--skip-checks", "--json")
    assert (said_running.status, said_running.json["status"]) == (0, "running"), said_running.err
    assert stack.qmdctl.run("doctor").status == 3
    assert stack.qmdctl.run("down").status == 0
    again = stack.up()
    assert again["status"] == "ready"
    assert all("downloading" not in phases for phases in again["phases"].values())
    status = stack.qmdctl.run("status", "--json")
    assert (status.status, [one["models"] for one in status.json["services"]]) == (0, [[EMBED_MODEL], [VLLM_MODEL]])
    test_everything_answers(stack)


def test_thinking_is_off_by_default_and_a_request_can_turn_it_on(stack: Stack) -> None:
    assert chat_prompt(stack).endswith(NO_THINKING)
    thinking = chat_prompt(stack, chat_template_kwargs={"enable_thinking": True})
    assert thinking.endswith("<|im_start|>assistant\n")


def test_restarting_dockerd_under_the_running_stack(stack: Stack) -> None:
    """What a reboot does: no depends_on, only restart policies. vLLM waits for embed by itself."""
    before = inspect("qmd-vllm")["State"]["StartedAt"]
    subprocess.run([str(ROOT / "scripts/test_engine.sh"), "restart"], check=True, capture_output=True, timeout=180)
    poll(lambda: inspect("qmd-vllm")["State"]["StartedAt"] != before, 60, "vllm to start again", 0.5)
    ready(stack)
    test_everything_answers(stack)
    assert "embed's status is ok: starting vLLM" in said("qmd-vllm", since=inspect("qmd-vllm")["State"]["StartedAt"])


def test_without_our_template_a_chat_would_think(stack: Stack) -> None:
    """The control of the test above: the model's own template, as it is."""
    (stack.qmdctl.folder / "vllm/own.jinja").write_text(QWEN3_CHAT_TEMPLATE)
    stack.qmdctl.set(VLLM_CHAT_TEMPLATE="own.jinja")
    compose(stack, "up", "--detach")
    ready(stack)
    assert not chat_prompt(stack).endswith(NO_THINKING)


def test_profile_off_and_generation_elsewhere(stack: Stack) -> None:
    """vLLM's container as a server elsewhere: it is not the stack's any more, but answers at its own address."""
    with httpx.Client(trust_env=False) as client:
        stack.qmdctl.set(COMPOSE_PROFILES="", GENERATION_URL="")
        compose(stack, "up", "--detach", "--remove-orphans")
        poll(lambda: inspect("qmd-embed")["State"]["Health"]["Status"] == "healthy", 120, "embed to be healthy", 0.5)
        body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
        answer = client.post(f"{stack.url('embed')}/v1/chat/completions", json=body, timeout=60)
        assert answer.status_code == 404
        assert "GENERATION_URL" in answer.json()["error"]["message"]
        stack.qmdctl.set(GENERATION_URL="http://qmd-vllm:8000")
        compose(stack, "up", "--detach")
        poll(lambda: inspect("qmd-embed")["State"]["Health"]["Status"] == "healthy", 120, "embed to be healthy", 0.5)
        answer = client.post(f"{stack.url('embed')}/v1/chat/completions", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
