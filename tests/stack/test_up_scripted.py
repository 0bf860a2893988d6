"""`qmdctl up` and its neighbours on real containers whose service is FAKE: faults come at will, within seconds."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from qmdctl import api_keys
from tests.support.qmdctl_cli import DOCKER_HOST, DockerError, Qmdctl, Ran, docker
from tests.support.require import require
from tests.support.service import free_port, poll

pytestmark = pytest.mark.docker
FAKE = Path(__file__).parent / "fake"
LOADING = "loading 300"


@pytest.fixture(scope="module", autouse=True)
def _engine() -> None:
    socket = Path(DOCKER_HOST.removeprefix("unix://"))
    require("docker", socket.exists(), f"no engine at {DOCKER_HOST} (sudo scripts/test_engine.sh start)")


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Qmdctl]:
    """A project of its own with the two scripted services; nothing of it is left."""
    folder = tmp_path / "project"
    shutil.copytree(FAKE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    name = f"qmdfake{uuid.uuid4().hex[:8]}"
    lines = {"COMPOSE_PROJECT_NAME": name, "COMPOSE_PROFILES": "generation", "GENERATION_URL": "http://vllm:8000"}
    lines |= {"EMBED_PORT": str(free_port()), "VLLM_PORT": str(free_port())}
    (folder / ".env").write_text("".join(f"{key}={value}\n" for key, value in lines.items()))
    qmdctl = Qmdctl(folder, tmp_path)
    yield qmdctl
    docker("compose", "--project-name", name, "--profile", "*", "down", "--volumes", "--timeout", "1")


def up(stack: Qmdctl, *arguments: str, embed: str = "", vllm: str = "") -> Ran:
    stack.set(FAKE_EMBED=embed, FAKE_VLLM=vllm)
    return stack.run("up", "--skip-checks", *arguments, seconds=60)


def read_until(process: subprocess.Popen[str], words: str) -> None:
    """Read its stderr up to the line with these words."""
    assert process.stderr
    assert any(words in line for line in process.stderr)


def container(stack: Qmdctl, service: str) -> str:
    project = re.search(r"COMPOSE_PROJECT_NAME='?(\w+)", (stack.folder / ".env").read_text())
    assert project
    return f"{project.group(1)}-{service}-1"


def test_phases_as_plain_lines_then_what_answers_where(stack: Qmdctl) -> None:
    done = up(stack, embed="downloading 1000 9000 0; downloading 8000 9000 0; loading 1", vllm="waiting 2; loading 1")
    assert done.status == 0, done.err
    assert "Ready in" in done.out
    assert "/v1/embeddings, /v1/rerank" in done.out
    assert "qmdctl health" in done.out
    assert "$ cd " in done.err
    assert "docker compose up --detach --build --remove-orphans" in done.err
    seen = re.findall(r"^\[.*\] (\w+): (\w+)", done.err, re.MULTILINE)
    assert [phase for service, phase in seen if service == "embed"][-3:] == ["downloading", "loading", "ready"]
    assert [phase for service, phase in seen if service == "vllm"][-3:] == ["waiting", "loading", "ready"]
    assert re.search(r"embed: downloading \d\.0 kB of 9\.0 kB", done.err)
    assert "\x1b" not in done.err + done.out


def test_a_second_up_says_running_and_a_changed_configuration_is_applied(stack: Qmdctl) -> None:
    assert up(stack).status == 0
    first = docker("inspect", "--format", "{{.Id}}", container(stack, "embed"))
    again = stack.run("up", "--json")
    assert (again.status, again.json["status"]) == (0, "running")
    assert "docker compose" not in again.err
    assert docker("inspect", "--format", "{{.Id}}", container(stack, "embed")) == first
    stack.set(EMBED_MODEL="other/model")
    changed = stack.run("up", "--skip-checks", "--json")
    assert (changed.status, changed.json["status"]) == (0, "ready"), changed.err
    assert docker("inspect", "--format", "{{.Id}}", container(stack, "embed")) != first
    assert changed.json["services"][0]["models"] == ["other/model", "fake/reranker"]
    assert list(changed.json["phases"]) == ["embed", "vllm"]


def test_a_changed_file_of_vllm_s_is_applied(stack: Qmdctl) -> None:
    """Its folder is mounted, so Compose sees no change."""
    assert up(stack).status == 0
    started = "{{.State.StartedAt}}"
    before = [docker("inspect", "--format", started, container(stack, name)) for name in ("embed", "vllm")]
    (stack.folder / "vllm").mkdir()
    (stack.folder / "vllm/start.py").touch()
    done = stack.run("up", "--skip-checks", "--json")
    assert (done.status, done.json["status"]) == (0, "ready"), done.err
    after = [docker("inspect", "--format", started, container(stack, name)) for name in ("embed", "vllm")]
    assert after[0] == before[0]
    assert after[1] != before[1]
    assert stack.run("up", "--json").json["status"] == "running"


def test_a_service_whose_profile_was_turned_off_goes(stack: Qmdctl) -> None:
    """Compose alone would leave it running."""
    assert up(stack).status == 0
    stack.set(COMPOSE_PROFILES="")
    done = stack.run("up", "--skip-checks", "--json")
    assert done.status == 0, done.err
    assert "No longer part of the stack (COMPOSE_PROFILES): vllm" in done.err
    project = container(stack, "").split("-")[0]
    names = docker("ps", "--all", "--format", "{{.Names}}", "--filter", f"label=com.docker.compose.project={project}")
    assert names == container(stack, "embed")


def test_verbs_take_the_services_that_are_there(stack: Qmdctl) -> None:
    assert stack.run("up", "--skip-checks", "embed").status == 0
    assert stack.run("restart", "vllm").status == 1
    done = stack.run("stop", "--json")
    assert (done.status, done.json["services"]) == (0, ["embed"]), done.err
    assert stack.run("start").status == 0


def test_the_second_start_has_an_estimate_from_the_first(stack: Qmdctl) -> None:
    assert up(stack, embed="loading 3", vllm="loading 2").status == 0
    stack.run("down")
    done = up(stack, embed="loading 3", vllm="loading 2")
    assert re.search(r"embed: loading weights; about \d+ s left \(last start took \d+ s\)", done.err), done.err


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ("loading 0.5; error model x/y is not at the hub FIX correct EMBED_MODEL", "embed: model x/y is not at the hub"),
        ("loading 0.5; log the last words; exit 3", "the container ends again and again"),
    ],
)
def test_a_service_that_fails_ends_up_early(stack: Qmdctl, script: str, sentence: str) -> None:
    done = up(stack, embed=script, vllm=LOADING)
    assert done.status == 1, done.err
    assert sentence in done.err
    assert "  → " in done.err
    assert "exit 3" not in script or "the last words" in done.err
    assert not done.out


def test_an_unhealthy_service_ends_up(stack: Qmdctl) -> None:
    stack.set(FAKE_START_PERIOD="1s")
    done = up(stack, "--json", embed=LOADING)
    assert done.status == 1, done.err
    assert done.json["service"] == "embed"
    assert done.json["phase"] == "unhealthy"
    assert done.json["fix"].startswith("qmdctl restart embed")


def test_a_container_that_crashes_once_comes_back(stack: Qmdctl) -> None:
    done = up(stack, "--json", embed="once; loading 1; exit 1")
    assert (done.status, done.json["status"]) == (0, "ready"), done.err
    assert done.json["restarted"] == {"embed": 1}


def test_a_container_killed_from_outside_during_up_comes_back(stack: Qmdctl) -> None:
    stack.set(FAKE_EMBED="loading 4", FAKE_VLLM="")
    with stack.start("up", "--skip-checks", "--json") as process:
        name = container(stack, "embed")
        poll(lambda: _pid(name) and b"loading" in _probe(name), 30, "embed to load")
        os.kill(_pid(name), signal.SIGKILL)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert '"restarted": {\n    "embed": 1' in out


def test_a_container_stopped_by_hand_during_up_is_told(stack: Qmdctl) -> None:
    stack.set(FAKE_EMBED=LOADING, FAKE_VLLM="")
    with stack.start("up", "--skip-checks") as process:
        name = container(stack, "embed")
        poll(lambda: _pid(name), 30, "embed to run")
        docker("kill", name)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "embed: the container ended (killed (SIGKILL), exit status 137)" in err


def test_a_stalled_download_is_said_and_waited_for(stack: Qmdctl) -> None:
    done = up(stack, embed="downloading 5000 9000 5; downloading 5000 9000 75; downloading 9000 9000 0")
    assert done.status == 0
    assert re.search(r"embed: downloading 5\.0 kB of 9\.0 kB \(stalled: no new byte for 75 s; check the network\)", done.err), done.err


def test_a_timeout_names_the_phase_and_the_doubling_command(stack: Qmdctl) -> None:
    done = up(stack, "--timeout", "3s", embed=LOADING)
    assert done.status == 4
    assert "Not ready after 3 s: embed is loading weights. It goes on by itself." in done.err
    assert "qmdctl up --timeout 6 " in done.err
    assert docker("inspect", "--format", "{{.State.Status}}", container(stack, "embed")) == "running"


def test_the_timeout_covers_what_compose_does_before(stack: Qmdctl) -> None:
    done = up(stack, "--timeout", "0.1", "embed")
    assert done.status == 4, done.err
    assert "docker compose up is not through after 0.1 s: it builds or pulls images." in done.err
    assert "qmdctl up embed --timeout 0.2 " in done.err


def test_ctrl_c_ends_the_waiting_and_what_runs_goes_on(stack: Qmdctl) -> None:
    stack.set(FAKE_EMBED=LOADING, FAKE_VLLM="")
    with stack.start("up", "--skip-checks") as process:
        read_until(process, "embed: loading")
        assert process.stderr
        process.send_signal(signal.SIGINT)
        err = process.stderr.read()
        assert process.wait(20) == 130
    assert "What runs goes on running." in err
    assert "qmdctl up (watches again), qmdctl status, or qmdctl down" in err
    assert "Traceback" not in err
    assert docker("inspect", "--format", "{{.State.Status}}", container(stack, "embed")) == "running"
    assert stack.run("status").status == 1


def test_a_terminal_sees_lines_drawn_over(stack: Qmdctl) -> None:
    stack.set(FAKE_EMBED="downloading 1000 9000 0; loading 2", FAKE_VLLM="")
    ours, theirs = pty.openpty()
    with stack.start("up", "--skip-checks", stderr=theirs, stdin=theirs, text=False) as process:
        os.close(theirs)
        drawn = b""
        end = time.monotonic() + 60
        while time.monotonic() < end and (select.select([ours], [], [], 1)[0] or process.poll() is None):
            try:
                drawn += os.read(ours, 65536)
            except OSError:
                break
        out, _ = process.communicate()
    os.close(ours)
    assert process.returncode == 0
    assert out.startswith(b"Ready in")
    assert b"loading weights" in drawn
    assert b"\x1b[2K\x1b[1A" in drawn  # a line is cleared, and the cursor goes up
    assert "✓".encode() in drawn


def test_status_tells_each_state_and_its_fix(stack: Qmdctl) -> None:
    nothing = stack.run("status")
    assert (nothing.status, nothing.out) == (1, "The stack is not running.\n  → qmdctl up\n")
    assert stack.run("up", "--skip-checks", "--no-wait").status == 0
    poll(lambda: stack.run("status").status == 0, 30, "a ready stack")
    ready = stack.run("status", "--json").json
    assert ready["ready"]
    assert [one["service"] for one in ready["services"]] == ["embed", "vllm"]
    assert ready["services"][0]["url"].endswith(re.findall(r"EMBED_PORT=(\d+)", (stack.folder / ".env").read_text())[0])
    assert ready["services"][1]["models"] == ["fake/generator"]
    assert stack.run("stop", "vllm").status == 0
    stopped = stack.run("status", "--json")
    assert stopped.status == 1
    assert stopped.json["services"][1]["fix"] == "qmdctl start vllm"
    assert stack.run("start", "vllm").status == 0
    poll(lambda: stack.run("status").status == 0, 30, "vllm to come back")


def test_a_stopped_service_is_not_judged_by_what_it_said_before(stack: Qmdctl) -> None:
    """Docker keeps the health entries of the last run: an old error must not end a new start."""
    assert up(stack, embed="once; error out of order").status == 1
    stack.run("stop")
    done = stack.run("up", "--skip-checks")
    assert done.status == 0, done.err


def test_a_busy_port_is_named(stack: Qmdctl) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        stack.set(EMBED_PORT=str(server.getsockname()[1]))
        done = up(stack)
    assert done.status == 3
    assert "is held by another program" in done.err
    assert "set EMBED_PORT or VLLM_PORT in .env" in done.err
    assert "Traceback" not in done.err


HEALTHY = ["container", "port", "/health", "embedding", "rerank", "forwarded chat"]


def test_health_sends_real_requests_and_names_the_first_broken_link(stack: Qmdctl) -> None:
    assert up(stack, vllm="answer think").status == 0
    done = stack.run("health", "--json")
    assert done.status == 1
    links = {(link["service"], link["link"]): link for link in done.json["links"]}
    assert [name for service, name in links if service == "embed"] == HEALTHY
    assert all(links["embed", name]["state"] == "ok" for name in HEALTHY)
    assert done.json["first_broken"]["link"] == "chat"
    assert "<think>" in done.json["first_broken"]["detail"]
    assert links["vllm", "completion"]["seconds"] >= 0


@pytest.mark.parametrize(
    ("embed", "vllm", "link", "words"),
    [
        ("answer nan", "", "embedding", "not finite"),
        ("answer score", "", "rerank", "7.5 is not in [0, 1]"),
        ("answer empty", "", "forwarded chat", "came back empty"),
        ("", "answer silent", "completion", "vllm answers /health but did not generate a token in 1 s (requests waiting: 3)"),
        ("loading 300", "", "/health", "/health says 503: phase loading"),
    ],
)
def test_each_broken_link_has_its_sentence(stack: Qmdctl, embed: str, vllm: str, link: str, words: str) -> None:
    stack.set(FAKE_EMBED=embed, FAKE_VLLM=vllm)
    assert stack.run("up", "--skip-checks", "--no-wait").status == 0
    states = {"embed": "starting" if "300" in embed else "healthy", "vllm": "healthy"}
    for service, state in states.items():
        name = container(stack, service)
        poll(lambda name=name, state=state: docker("inspect", "--format", "{{.State.Health.Status}}", name) == state, 30, f"{name} {state}")
    poll(lambda: b"status" in _probe(container(stack, "embed")), 20, "embed to listen")
    done = stack.run("health", "--timeout", "1")
    assert done.status == 1
    assert f", {link}: " in done.out.splitlines()[-2], done.out
    assert words in done.out
    assert done.out.splitlines()[-1].startswith("  → ")


def test_where_vllm_itself_is_broken_the_forwarder_is_not_blamed(stack: Qmdctl) -> None:
    assert up(stack, embed="answer empty", vllm="answer empty").status == 0
    broken = stack.run("health", "--json").json["first_broken"]
    assert (broken["service"], broken["link"]) == ("vllm", "completion")


def test_a_stack_that_is_taken_down_during_up_is_told(stack: Qmdctl) -> None:
    stack.set(FAKE_EMBED=LOADING, FAKE_VLLM="")
    with stack.start("up", "--skip-checks") as process:
        read_until(process, "embed: loading")
        assert stack.run("down").status == 0
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert re.search("its container is gone|the container ended", err), err


def test_health_with_keys(stack: Qmdctl) -> None:
    keys = stack.folder / "keys"
    keys.write_text("sha256:abc\n")
    stack.set(API_KEYS_FILE="keys")
    assert up(stack).status == 0
    hashed = stack.run("health")  # with a key of its own, which the scripted service does not look up
    assert hashed.status == 1
    assert "not one of its keys" in hashed.out
    assert keys.read_text().startswith("sha256:abc\n# qmdctl-health ")
    assert api_keys.read(keys).keys == [], "it is taken back also where a link is broken"
    (stack.folder / "mine").write_text("the-key\n")
    assert stack.run("health", "--key-file", str(stack.folder / "mine")).status == 0
    keys.write_text("wrong-key\n")
    assert "not one of its keys" in stack.run("health").out


def _pid(name: str) -> int:
    try:
        return int(docker("inspect", "--format", "{{.State.Pid}}", name))
    except DockerError:
        return 0


def _probe(name: str) -> bytes:
    try:
        return docker("exec", name, "cat", "/tmp/state.json").encode()
    except DockerError:
        return b""
