"""`qmdctl models` on a running stack: a change under requests, one that fails, Ctrl-C, and freeing the cache. One stack, in order.

Real: the engine, the embed image, its models' code, Compose. FAKE: the model hub, on the engine's bridge; vLLM, which is a script.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from safetensors.numpy import load_file, save_file

from tests.qmdctl.test_models_use import Asking
from tests.support.checkpoints import checkpoint
from tests.support.hub import FakeHub
from tests.support.qmdctl_cli import docker
from tests.support.service import minilm_path, poll
from tests.support.stack_images import embed_image, need_engine
from tests.support.stack_project import Stack, bridge_address, make_project

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(600)]
PROJECT = "qmdmodels"
FIRST, SECOND, BROKEN, LARGE = "org/first", "org/second", "org/broken", "org/large"
CHAT, OTHER_CHAT, BROKEN_CHAT = "org/chat", "org/other-chat", "org/broken-chat"
# vLLM's place is taken by a script that becomes ready, unless the model's name says otherwise.
SCRIPTED = """
services:
  vllm:
    image: qmd-test/base:bookworm
    entrypoint:
      - sh
      - -c
      - >-
        case "$$QMD_MODEL" in *broken*) export FAKE_SCRIPT="error it knows no such architecture";; esac;
        exec python3 /fake/service.py 8000
    environment: {FAKE_SCRIPT: ""}
    volumes: ["./service.py:/fake/service.py:ro"]
    healthcheck: {test: [CMD, python3, /fake/service.py, probe], start_interval: 500ms, interval: 1s}
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """FIRST is served, and reranks by cosine; CHAT is said to generate."""
    need_engine()
    embed_image()
    home = tmp_path_factory.mktemp("models")
    broken = shutil.copytree(checkpoint("nomic"), home / "broken")
    tensors = load_file(broken / "model.safetensors")
    del tensors[min(tensors)]
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    with FakeHub(bridge_address()) as hub:
        for name, folder in {
            FIRST: checkpoint("bge-base"),
            SECOND: checkpoint("nomic"),
            BROKEN: broken,
            LARGE: Path(minilm_path()),
        }.items():
            hub.add(name, folder)
        for name in (CHAT, OTHER_CHAT, BROKEN_CHAT):
            hub.add(name, checkpoint("qwen3-chat"))
        values = {
            "COMPOSE_PROJECT_NAME": PROJECT,
            "COMPOSE_FILE": "compose.yaml:compose.cpu.yaml:compose.scripted.yaml",
            "DTYPE": "float32",
        }
        values |= {
            "EMBED_MODEL": FIRST,
            "RERANK_MODEL": FIRST,
            "VLLM_MODEL": CHAT,
            "HF_ENDPOINT": hub.url,
            "GENERATION_URL": "http://vllm:8000",
        }
        qmdctl = make_project(home / "project", home, values)
        (qmdctl.folder / "compose.scripted.yaml").write_text(SCRIPTED)
        shutil.copy(Path(__file__).parent / "fake/service.py", qmdctl.folder)
        running = Stack(qmdctl, hub)
        try:
            running.up()
            yield running
        finally:
            running.close(PROJECT)


def served(stack: Stack, role: str = "embed") -> str:
    return str(httpx.get(f"{stack.url('embed')}/health", timeout=20, trust_env=False).json()["models"][role])


def env(stack: Stack) -> str:
    return (stack.qmdctl.folder / ".env").read_text()


def test_a_change_under_requests_keeps_the_port_and_loses_none(stack: Stack) -> None:
    container = docker("inspect", "--format", "{{.Id}}", "qmd-embed")
    with Asking(stack.url("embed")) as asking:
        done = stack.qmdctl.run("models", "use", "embed", SECOND, "--yes", "--json", env={"QMDCTL_NO_RECORD": ""})
    assert done.status == 0, done.err
    assert asking.failed == []
    assert (done.json["status"], done.json["fingerprint"]["changed"]) == ("switched", True)
    assert done.json["commands"] == ["qmd embed -f", "qmd cleanup"]
    assert docker("inspect", "--format", "{{.Id}}", "qmd-embed") == container
    assert (served(stack), served(stack, "rerank"), stack.qmdctl.value("EMBED_MODEL")) == (SECOND, SECOND, SECOND)
    assert stack.qmdctl.value("EMBED_REVISION") == done.json["after"]["revision"]
    assert stack.qmdctl.run("models", "use", "embed", SECOND, "--json").json["status"] == "unchanged"


# In a process of its own, in qmdctl's environment: what this one has of its own would count as settings.
DRIFTED = f"""
from pathlib import Path
from qmdctl.compose import Compose
from qmdctl.engine import Engine
from qmdctl.project import Project
from qmdctl.releases.switch import is_drifted
from qmdctl.settings import load_settings
from qmdctl.terminal import Terminal
import sys
settings = load_settings(Project(Path(sys.argv[1]), "test"))
running = {{name: one for name, one in Engine.connect().containers("{PROJECT}").items() if one.running}}
print(is_drifted(settings, Compose(settings, Terminal()), running))
"""


def test_a_change_is_in_the_history_and_what_runs_is_not_taken_for_edited(stack: Stack) -> None:
    (folder,) = (stack.qmdctl.folder / ".qmdctl/history").iterdir()
    record = json.loads((folder / "record.json").read_text())
    assert (record["title"], record["result"]) == (f"models use embed {SECOND}", "ready")
    assert record["models"]["EMBED_MODEL"] == f"{SECOND}@{stack.qmdctl.value('EMBED_REVISION')}"
    assert SECOND in (folder / "env").read_text() and SECOND in (folder / "compose.yaml").read_text()
    command = [sys.executable, "-c", DRIFTED, stack.qmdctl.folder]
    done = subprocess.run(
        command, cwd=stack.qmdctl.folder, env=stack.qmdctl.full_environment(), capture_output=True, text=True, check=False
    )
    assert done.stdout.split()[-1:] == ["False"], done.stderr
    docker("rmi", *(image["kept"] for image in record["images"].values() if image["kept"]))
    shutil.rmtree(folder)


def test_env_that_is_put_back_is_served_by_the_next_up(stack: Stack) -> None:
    path = stack.qmdctl.folder / ".env"
    switched = path.read_text()
    container = docker("inspect", "--format", "{{.Id}}", "qmd-embed")
    lines = [
        line
        for line in switched.splitlines()
        if not line.startswith(("EMBED_MODEL=", "EMBED_REVISION=", "RERANK_MODEL=", "RERANK_REVISION="))
    ]
    path.write_text("\n".join([*lines, f"EMBED_MODEL={FIRST}", f"RERANK_MODEL={FIRST}", ""]))
    stack.up()
    assert (served(stack), served(stack, "rerank")) == (FIRST, FIRST)
    assert docker("inspect", "--format", "{{.Id}}", "qmd-embed") != container
    again = stack.qmdctl.run("up", "--json")
    assert (again.status, again.json["status"]) == (0, "running"), again.err
    done = stack.qmdctl.run("models", "use", "embed", SECOND, "--yes", "--json")  # as the tests below need it
    assert done.status == 0, done.err
    assert served(stack) == SECOND


def test_the_list_shows_what_is_served_cached_and_would_fit(stack: Stack) -> None:
    done = stack.qmdctl.run("models", "--json")
    assert done.status == 0, done.err
    embed, rerank, generate = done.json["served"]
    assert (embed["model"], rerank["model"], generate["model"]) == (SECOND, SECOND, CHAT)
    assert (embed["revision"], embed["dtype"], embed["state"]) == (stack.qmdctl.value("EMBED_REVISION"), "float32", "ok")
    cached = {one["model"]: one for one in done.json["cache"]["revisions"]}
    assert cached[SECOND]["bytes"] > 1_000_000
    assert "embed, served" in cached[SECOND]["needed"]
    assert all(one["fits"] is not None for one in done.json["known"] if one["role"] == "generate")


def test_one_that_does_not_load_leaves_the_old_one(stack: Stack) -> None:
    before = env(stack)
    done = stack.qmdctl.run("models", "use", "embed", BROKEN, "--yes")
    assert done.status == 1, done.err
    assert "The old model is served again" in done.err
    assert env(stack) == before
    assert (served(stack), len(stack.post("embed", "/v1/embeddings", input=["a"])["data"])) == (SECOND, 1)


def test_ctrl_c_while_it_downloads_keeps_what_is_there(stack: Stack) -> None:
    before = env(stack)
    stack.hub.bytes_per_second = 2e6  # MiniLM takes 45 s
    with stack.qmdctl.start("models", "use", "embed", LARGE, "--yes", start_new_session=True) as process:
        assert process.stderr is not None
        assert any(f"weights {LARGE}" in line for line in process.stderr)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, err = process.communicate(timeout=60)
    stack.hub.bytes_per_second = None
    assert process.returncode == 130, err
    assert "What is downloaded is kept" in err
    poll(lambda: not docker("ps", "--quiet", "--filter", "name=qmd-models-"), 20, "the downloader to end", 0.3)
    assert (env(stack), served(stack)) == (before, SECOND)
    listed = stack.qmdctl.run("models", "--json").json["cache"]["incomplete"]
    assert [one["model"] for one in listed] == [LARGE]


def test_the_generation_model_changes_and_comes_back_where_it_fails(stack: Stack) -> None:
    done = stack.qmdctl.run("models", "use", "generate", OTHER_CHAT, "--yes", "--json")
    assert done.status == 0, done.err
    assert (done.json["commands"], stack.qmdctl.value("VLLM_MODEL")) == ([], OTHER_CHAT)
    given = "{{range .Config.Env}}{{println .}}{{end}}"
    assert f"QMD_MODEL={OTHER_CHAT}" in docker("inspect", "--format", given, "qmd-vllm")
    before = env(stack)
    failed = stack.qmdctl.run("models", "use", "generate", BROKEN_CHAT, "--yes")
    assert failed.status == 1, failed.err
    assert "it knows no such architecture" in failed.err
    assert "The old one is served again; .env is unchanged." in failed.err
    assert env(stack) == before
    assert f"QMD_MODEL={OTHER_CHAT}" in docker("inspect", "--format", given, "qmd-vllm")
    assert stack.post("vllm", "/v1/completions", prompt="a", max_tokens=1)["choices"]


def test_prune_frees_what_is_not_needed(stack: Stack) -> None:
    asked = stack.qmdctl.run("models", "prune")
    assert asked.status == 2
    assert BROKEN in asked.err and "--yes" in asked.err
    assert FIRST not in asked.err, "the container was made with it"
    assert "left alone" not in asked.err, "the volume is this stack's own"
    kept = stack.qmdctl.run("models", "prune", "--model", SECOND, "--yes")
    assert (kept.status, "is needed" in kept.err) == (2, True)
    record = stack.qmdctl.folder / ".qmdctl/history/1/record.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"models": {"EMBED_MODEL": f"{FIRST}@{stack.hub.repositories[FIRST].branches['main']}"}}))
    done = stack.qmdctl.run("models", "prune", "--yes", "--json")
    assert done.status == 0, done.err
    removed = {one["model"] for one in done.json["revisions"]} | {one["model"] for one in done.json["incomplete"]}
    assert {BROKEN, BROKEN_CHAT, LARGE} <= removed
    assert not {FIRST, SECOND, OTHER_CHAT} & removed
    left = {one["model"] for one in stack.qmdctl.run("models", "--json").json["cache"]["revisions"]}
    assert left == {FIRST, SECOND, OTHER_CHAT}


def test_the_next_up_serves_the_same_model_without_a_network(stack: Stack) -> None:
    """The container's own settings are older than the switch: it is made anew, and .env now names what was switched to."""
    fingerprint = httpx.get(f"{stack.url('embed')}/health", timeout=20, trust_env=False).json()["fingerprint"]
    stack.hub.close()
    stack.up()
    health = httpx.get(f"{stack.url('embed')}/health", timeout=20, trust_env=False).json()
    assert (health["models"]["embed"], health["fingerprint"]) == (SECOND, fingerprint)
