"""`qmdctl migrate` from the seed's native setup: a real container qmd-vllm on the tests' engine, real files.

FAKE: systemctl, tailscale and sudo (tests/support/native.py).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.native import PYTHON, SUDO, service
from tests.support.native_box import PROJECT, Box, container, converse, make_box
from tests.support.qmdctl_cli import DOCKER_HOST, Ran, docker
from tests.support.require import require
from tests.support.service import ROOT
from tests.support.stack_images import BASE_IMAGE

pytestmark = [pytest.mark.docker, pytest.mark.timeout(120)]
OTHER = 65_534


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    with make_box(tmp_path) as box:
        yield box


def test_all_of_it_is_taken_over_and_given_back(box: Box) -> None:
    identifier = box.everything()
    planned = box.migrate("--dry-run")
    assert planned["status"] == "planned"
    assert not box.env.exists()
    assert not (box.folder / ".migration").exists()
    assert not [call for call in box.native.calls() if call.split()[-2] in ("stop", "disable", "drain")]

    done = box.migrate("--yes")
    assert done["status"] == "migrated"
    assert [step["kind"] for step in done["plan"]["steps"]] == ["env", "service", "service", "unit", "container"]
    assert {step["state"] for step in done["done"]} == {"done"}
    assert box.native.unit_state() == (False, False)
    assert container("qmd-vllm") is None
    assert container("qmd-vllm-before") == (identifier, "exited", "no")
    assert box.native.serving()[1] == ["svc:other"]
    expected = {
        "EMBED_MODEL": "Qwen/Qwen3-Embedding-4B",
        "RERANK_MODEL": "Qwen/Qwen3-Reranker-4B",
        "VLLM_MODEL": "Qwen/Qwen3-1.7B",
        "MAX_BATCH_SIZE": "32",
        "EMBED_PORT": str(box.embed_port),
        "VLLM_PORT": str(box.vllm_port),
        "VLLM_GPU_MEMORY_UTILIZATION": "0.12",
        "VLLM_KV_CACHE_GB": "auto",
        "VLLM_ENFORCE_EAGER": "true",
        "VLLM_IMAGE": BASE_IMAGE,
        "HF_CACHE_DIR": str(box.native.cache),
        "PROMPT_POLICY": "raw",
        "COMPOSE_PROFILES": "generation,tailnet",
        "TAILNET_SERVICE": "1",
        "EMBED_HOSTNAME": "qmd-embed-spark",
        "VLLM_HOSTNAME": "qmd-vllm-spark",
        "TS_TAGS": "tag:qmd-server",
    }
    assert {key: box.qmdctl.value(key) for key in expected} == expected
    assert {value["key"] for value in done["plan"]["values"]} >= set(expected)
    assert any("approve the new hosts of svc:qmd-embed, svc:qmd-vllm" in task for task in done["plan"]["owner"])

    again = box.migrate("--yes")
    assert again["status"] == "already"
    assert [step["title"] for step in again["done"]] == [step["title"] for step in done["done"]]

    before = len(box.native.calls())
    back = box.migrate("--undo", "--yes")
    assert (back["status"], back["remarks"]) == ("undone", [])
    assert not box.env.exists()
    assert box.native.unit_state() == (True, True)
    assert container("qmd-vllm") == (identifier, "running", "unless-stopped")
    assert container("qmd-vllm-before") is None
    assert box.native.serving()[1] == ["svc:other", "svc:qmd-embed", "svc:qmd-vllm"]
    changes = [call.split()[1] for call in box.native.calls()[before:] if call.split()[1] in ("enable", "start")]
    assert changes == ["enable", "start"]
    assert box.migrate("--undo", "--yes")["status"] == "undone"
    assert len([call for call in box.native.calls() if call.startswith("systemctl start")]) == 1, "a second time changes nothing"
    assert box.migrate("--yes")["status"] == "migrated"


def test_only_the_container(box: Box) -> None:
    (box.native.state / "down").touch()
    box.native.model("Qwen/Qwen3-1.7B", 1700)
    box.vllm("--restart", "always")
    done = box.migrate("--yes")
    assert [step["kind"] for step in done["plan"]["steps"]] == ["env", "container"]
    assert done["found"]["systemd"].startswith("systemd does not run here (a container, or WSL without it)")
    assert (box.qmdctl.value("VLLM_MODEL"), box.qmdctl.value("PROMPT_POLICY")) == ("Qwen/Qwen3-1.7B", "raw")
    box.migrate("--undo", "--yes")
    assert (container("qmd-vllm") or ())[1:] == ("running", "always")


def test_only_the_unit(box: Box) -> None:
    """A container that was stopped before stays so."""
    box.native.embed_unit(box.embed_port, "EnvironmentFile=-/no/such", active=False)
    done = box.migrate("--yes")
    assert [step["kind"] for step in done["plan"]["steps"]] == ["env", "unit"]
    assert done["plan"]["steps"][1]["commands"] == ["systemctl disable qmd-embed.service"]
    assert any("no qmd-vllm was found" in note for note in done["plan"]["notes"])
    box.migrate("--undo", "--yes")
    assert box.native.unit_state() == (False, True)


def test_nothing(box: Box) -> None:
    box.native.model("Qwen/Qwen3-4B", 10)
    assert box.migrate("--yes")["status"] == "nothing"
    assert box.migrate("--undo")["status"] == "nothing"
    assert not box.env.exists()
    assert not (box.folder / ".migration").exists()
    assert "Nothing of the seed's native setup was found" in box.qmdctl.run("migrate").out


def test_a_unit_that_runs_the_container_is_all_there_is_to_stop(box: Box) -> None:
    """The seed's later unit: `docker run --rm` in the foreground, so that the container ends with it."""
    box.native.vllm_unit(box.vllm_port)
    box.vllm("--rm")
    planned = box.migrate("--dry-run")
    assert [step["kind"] for step in planned["plan"]["steps"]] == ["env", "unit"]
    assert planned["plan"]["problems"] == []
    (box.native.state / "system/qmd-vllm.active").unlink()
    refused = box.migrate("--yes", status=2)
    assert "was started with --rm" in refused["error"]
    assert not box.env.exists()


def test_an_env_that_is_there_keeps_its_values_unless_agreed(box: Box) -> None:
    box.everything()
    text = "# mine\nEMBED_MODEL=Qwen/Qwen3-Embedding-0.6B\nCOMPOSE_PROFILES=generation\nVLLM_MODEL=Qwen/Qwen3-1.7B # same\n\nEMBED_PORT="
    box.env.write_text(text)
    box.env.chmod(0o640)
    shown = box.qmdctl.run("migrate", "--dry-run").out
    assert "EMBED_MODEL=Qwen/Qwen3-Embedding-0.6B; found: Qwen/Qwen3-Embedding-4B (default" not in shown
    assert "  - EMBED_MODEL=Qwen/Qwen3-Embedding-0.6B; found: Qwen/Qwen3-Embedding-4B (the seed's default)" in shown
    assert "an index made with Qwen/Qwen3-Embedding-4B has to be made again" in shown
    done = box.migrate("--yes")
    assert {value["key"] for value in done["plan"]["kept"]} == {"EMBED_MODEL", "COMPOSE_PROFILES"}
    assert "service" not in {step["kind"] for step in done["plan"]["steps"]}, "no sidecar would take the names over"
    assert box.native.serving()[1] == ["svc:qmd-embed", "svc:qmd-vllm", "svc:other"]
    assert box.qmdctl.value("EMBED_MODEL") == "Qwen/Qwen3-Embedding-0.6B"
    assert box.qmdctl.value("EMBED_PORT") == str(box.embed_port)
    assert box.qmdctl.value("PROMPT_POLICY") == "raw"
    assert "# mine" in box.env.read_text()
    box.migrate("--undo", "--yes")
    assert box.env.read_bytes() == text.encode(), "every byte, the missing newline at the end too"
    assert box.env.stat().st_mode & 0o777 == 0o640

    done = box.migrate("--yes", "--overwrite")
    assert box.qmdctl.value("EMBED_MODEL") == "Qwen/Qwen3-Embedding-4B"
    assert [step["kind"] for step in done["plan"]["steps"]].count("service") == 2
    box.env.write_text(box.env.read_text() + "LOG_LEVEL=debug\n")
    remarks = box.migrate("--undo", "--yes")["remarks"]
    assert "env.edited" in remarks[0]
    assert box.env.read_bytes() == text.encode()
    assert "LOG_LEVEL=debug" in (box.folder / ".migration/env.edited.1").read_text()


@pytest.mark.parametrize("crash", ["tailscale drain", "systemctl disable", "systemctl stop", "docker stop", "docker rename"])
def test_a_crash_between_two_steps(box: Box, crash: str) -> None:
    """Killed after a command; going back puts all in its place, and migrating then goes through."""
    identifier = box.everything()
    original = "EMBED_MODEL=Qwen/Qwen3-Embedding-4B\n"
    box.env.write_text(original)
    real = shutil.which("docker")
    if crash.startswith("docker"):
        body = f'import subprocess\nstatus = subprocess.run(["{real}", *words]).returncode\nkill_caller(words[0])\nsys.exit(status)\n'
        box.native.program("docker", body)
    killed = box.run("--yes", FAKE_KILL=crash)
    assert killed.status == -signal.SIGKILL, killed.err
    journal = json.loads((box.folder / ".migration/journal.json").read_text())
    assert [entry["state"] for entry in journal["steps"]][-1] == "begun"
    assert box.migrate("--undo", "--yes")["status"] == "undone"
    assert box.env.read_text() == original
    assert box.native.unit_state() == (True, True)
    assert container("qmd-vllm") == (identifier, "running", "unless-stopped")
    assert box.native.serving()[1] == ["svc:other", "svc:qmd-embed", "svc:qmd-vllm"]
    assert box.migrate("--yes")["status"] == "migrated"
    assert container("qmd-vllm-before") == (identifier, "exited", "no")


def test_a_crash_and_migrating_again_without_going_back(box: Box) -> None:
    """The second run does the rest; going back reverses both."""
    identifier = box.everything()
    assert box.run("--yes", FAKE_KILL="systemctl stop").status == -signal.SIGKILL
    written = box.env.read_bytes()
    done = box.migrate("--yes")
    assert [step["kind"] for step in done["plan"]["steps"]] == ["container"]
    assert box.env.read_bytes() == written
    box.migrate("--undo", "--yes")
    assert not box.env.exists()
    assert box.native.unit_state() == (True, True)
    assert container("qmd-vllm") == (identifier, "running", "unless-stopped")
    assert box.native.serving()[1] == ["svc:other", "svc:qmd-embed", "svc:qmd-vllm"]


def test_a_step_that_fails_takes_those_before_it_back(box: Box) -> None:
    identifier = box.everything()
    refused = box.migrate("--yes", status=1, FAKE_FAIL="systemctl stop")
    assert refused["error"].startswith("Nothing was taken over: disable and stop the unit qmd-embed.service")
    assert not box.env.exists()
    assert box.native.unit_state() == (True, True)
    assert container("qmd-vllm") == (identifier, "running", "unless-stopped")
    assert box.native.serving()[1] == ["svc:other", "svc:qmd-embed", "svc:qmd-vllm"]


def test_refused_permissions_change_nothing(box: Box, tmp_path: Path) -> None:
    """Another user: without sudo's consent, with it, and without the engine's."""
    require("root", os.geteuid() == 0, "only root can act as another user")
    identifier = box.everything()
    for above in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        above.chmod(above.stat().st_mode | 0o055)
    for above, folders, files in os.walk(tmp_path):
        for name in (*folders, *files, "."):
            os.chown(Path(above) / name, OTHER, OTHER, follow_symlinks=False)

    packages = sysconfig.get_paths()["purelib"]
    environment = box.qmdctl.full_environment({"PYTHONPATH": f"{ROOT}:{packages}"})
    imports = [PYTHON, "-c", "import docker, httpx, typer, qmdctl.cli"]
    can = subprocess.run(imports, env=environment, user=OTHER, group=OTHER, extra_groups=[], capture_output=True, check=False)
    require("second-user", can.returncode == 0, f"another user cannot run qmdctl with {PYTHON}")

    def as_other(*arguments: str, group: int) -> Ran:
        done = subprocess.run(
            [PYTHON, *box.qmdctl.command("migrate", "--json", *arguments)[1:]],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
            user=OTHER,
            group=group,
            extra_groups=[],
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    engines = Path(DOCKER_HOST.removeprefix("unix://")).stat().st_gid
    refused = as_other("--yes", group=OTHER)
    assert refused.status == 3, refused.err
    assert "does not let this user in" in refused.json["error"]

    box.native.program("sudo", SUDO)
    (box.native.state / "sudo-refuses").touch()
    refused = as_other("--yes", group=engines)
    assert refused.status == 3, refused.err
    for command in ("sudo tailscale serve drain svc:qmd-embed", "sudo systemctl disable qmd-embed.service"):
        assert command in refused.json["error"]
    assert not box.env.exists()
    assert not (box.folder / ".migration").exists()
    assert box.native.unit_state() == (True, True)
    assert container("qmd-vllm") == (identifier, "running", "unless-stopped")

    (box.native.state / "sudo-refuses").unlink()
    done = as_other("--yes", group=engines)
    assert done.status == 0, done.err
    assert box.native.unit_state() == (False, False)
    assert box.env.stat().st_uid == OTHER
    assert as_other("--undo", "--yes", group=engines).status == 0
    assert box.native.unit_state() == (True, True)
    assert container("qmd-vllm") == (identifier, "running", "unless-stopped")


def test_ours_is_not_touched_and_is_stopped_before_going_back(box: Box) -> None:
    identifier = box.everything()
    box.migrate("--yes", "--keep-services")
    assert "tailnet" not in box.qmdctl.value("COMPOSE_PROFILES")
    assert len(box.native.serving()[1]) == 3
    compose = ["docker", "--host", DOCKER_HOST, "compose", "up", "-d"]
    environment = {**os.environ, "COMPOSE_PROJECT_NAME": PROJECT}
    subprocess.run(compose, cwd=box.folder, env=environment, check=True, capture_output=True)
    stack = container("qmd-vllm")
    assert stack is not None
    assert stack[0] != identifier, "names and ports were free for the stack"
    again = box.migrate("--yes", "--keep-services")
    assert (again["status"], again["found"]["containers"]) == ("already", [])
    assert again["found"]["own_containers"] == ["qmd-embed", "qmd-vllm"]
    assert container("qmd-vllm") == stack
    planned = box.migrate("--undo", "--dry-run")
    assert planned["stops"] == ["qmd-embed", "qmd-vllm"]
    assert container("qmd-vllm") == stack
    box.migrate("--undo", "--yes")
    assert container("qmd-vllm") == (identifier, "running", "unless-stopped")
    assert container("qmd-embed") is None


def test_going_back_when_something_was_removed_since(box: Box) -> None:
    box.everything()
    box.native.serves({"Web": {}}, [])
    (box.native.state / "serve.json").write_text(json.dumps({"Services": {"svc:qmd-embed": service("qmd-embed", box.embed_port)}}))
    (box.native.state / "prefs.json").write_text(json.dumps({"AdvertiseServices": ["svc:qmd-embed"]}))
    box.migrate("--yes")
    docker("rm", "qmd-vllm-before")
    (box.native.state / "serve.json").write_text("{}")
    remarks = box.migrate("--undo", "--yes")["remarks"]
    assert ["is gone: it was removed since" in remark for remark in remarks] == [True]
    config, advertised = box.native.serving()
    assert config["Services"]["svc:qmd-embed"] == service("qmd-embed", box.embed_port)
    assert advertised == ["svc:qmd-embed"]
    assert box.native.unit_state() == (True, True)


def test_the_nodes_own_entries_stay_unless_asked(box: Box) -> None:
    box.native.embed_unit(box.embed_port)
    web = {
        "spark.tail1234.ts.net:8443": {"Handlers": {"/": {"Proxy": f"http://127.0.0.1:{box.embed_port}"}}},
        "spark.tail1234.ts.net:443": {"Handlers": {"/": {"Proxy": "http://127.0.0.1:3000"}}},
    }
    config = {"TCP": {"8443": {"HTTPS": True}, "443": {"HTTPS": True}}, "Web": web}
    box.native.serves(config, [])
    planned = box.migrate("--dry-run")["plan"]
    assert [step["kind"] for step in planned["steps"]] == ["env", "unit"]
    assert any("8443" in note and "stays" in note for note in planned["notes"])
    done = box.migrate("--yes", "--clear-serve")
    assert [step["kind"] for step in done["plan"]["steps"]] == ["env", "serve", "unit"]
    assert list(box.native.serving()[0]["Web"]) == ["spark.tail1234.ts.net:443"]
    box.migrate("--undo", "--yes")
    assert box.native.serving()[0] == config


def test_without_a_terminal_it_needs_yes(box: Box) -> None:
    box.native.embed_unit(box.embed_port)
    refused = box.migrate(status=2)
    assert "--yes" in refused["fix"]
    assert box.native.unit_state() == (True, True)


def test_on_a_terminal_it_asks(box: Box) -> None:
    """Whether values of .env give way, then whether to do it; "n" changes nothing."""
    box.native.embed_unit(box.embed_port)
    box.env.write_text("EMBED_MODEL=mine/model\n")
    assert converse(box, ["n", "n"]) == 130
    assert box.native.unit_state() == (True, True)
    assert not (box.folder / ".migration").exists()
    assert converse(box, ["y", "y"]) == 0
    assert box.qmdctl.value("EMBED_MODEL") == "Qwen/Qwen3-Embedding-4B"
    assert box.native.unit_state() == (False, False)
