"""Upgrade, rollback and history on a real engine and a real git checkout: one stack, taken through its life in order.

The services are FAKE (fake/service.py); what they do is decided by their image, so that an image or a release can be good or bad.
"""

from __future__ import annotations

import json
import shutil
import signal
import stat
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from qmdctl.releases.changes import between
from qmdctl.releases.record import History, Record
from tests.support.qmdctl_cli import DOCKER_HOST, Qmdctl, Ran, docker
from tests.support.require import require
from tests.support.service import poll
from tests.support.upgrade_project import SECRET, dockerfile, git, make_project, release, released

pytestmark = [pytest.mark.docker, pytest.mark.slow]
IMAGES = {"first": "", "second": "", "broken": "error it cannot load FIX choose another image", "hanging": "loading 300"}


@pytest.fixture(scope="module")
def images() -> Iterator[dict[str, str]]:
    """{kind: name} of small images for vllm."""
    socket = Path(DOCKER_HOST.removeprefix("unix://"))
    require("docker", socket.exists(), f"no engine at {DOCKER_HOST} (sudo scripts/test_engine.sh start)")
    made = uuid.uuid4().hex[:8]
    names = {kind: f"qmdfake-vllm:{kind}-{made}" for kind in IMAGES}
    for kind, name in names.items():
        command = ["docker", "--host", DOCKER_HOST, "build", "--quiet", "--tag", name, "-"]
        subprocess.run(command, input=dockerfile(IMAGES[kind], f"{kind}-{made}"), text=True, check=True, capture_output=True)
    yield names
    docker("image", "rm", "--force", *names.values())


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, images: dict[str, str]) -> Iterator[Qmdctl]:
    home = tmp_path_factory.mktemp("upgrade")
    name = f"qmdfake{uuid.uuid4().hex[:8]}"
    yield make_project(home, name, images["first"])
    docker("compose", "--project-name", name, "--profile", "*", "down", "--volumes", "--timeout", "1")
    left = docker("images", "--format", "{{.Repository}}:{{.Tag}}", "--filter", f"reference={name}-*").split()
    if left:
        docker("image", "rm", "--force", *left)


def container(stack: Qmdctl, service: str) -> str:
    return f"{stack.value('COMPOSE_PROJECT_NAME')}-{service}-1"


def image_of(stack: Qmdctl, service: str) -> str:
    return docker("inspect", "--format", "{{.Image}}", container(stack, service))


def id_of(name: str) -> str:
    return docker("image", "inspect", "--format", "{{.Id}}", name)


def serves(stack: Qmdctl) -> None:
    """Both services answer a real request."""
    for port, path, body in (("EMBED_PORT", "embeddings", {"input": ["a"]}), ("VLLM_PORT", "completions", {"prompt": "a"})):
        answer = httpx.post(f"http://127.0.0.1:{stack.value(port)}/v1/{path}", json=body, timeout=10, trust_env=False)
        assert answer.status_code == 200


def history(stack: Qmdctl) -> History:
    return History(stack.folder)


def current(stack: Qmdctl) -> Record:
    found = history(stack).current
    assert found is not None
    return found


def upgrade(stack: Qmdctl, *arguments: str) -> Ran:
    return stack.run("upgrade", "--yes", "--skip-checks", *arguments)


def test_an_up_that_became_healthy_is_recorded_without_secrets(stack: Qmdctl) -> None:
    done = stack.run("up", "--skip-checks")
    assert done.status == 0, done.err
    assert "Recorded as number 1" in done.err
    folder = stack.folder / ".qmdctl/history/0001"
    assert sorted(path.name for path in folder.iterdir()) == ["compose.yaml", "env", "record.json"]
    kept = "".join(path.read_text() for path in folder.iterdir())
    assert SECRET not in kept
    assert "# UPSTREAM_TOKEN=…" in kept
    assert 'SIZE: "7"' in kept.replace("'", '"')
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in folder.iterdir())
    record = json.loads((folder / "record.json").read_text())
    assert record["release"]["tag"] == "v0.1.0"
    assert record["release"]["version"] == "0.1.0"
    assert record["models"] == {"EMBED_MODEL": "fake/embedding", "RERANK_MODEL": "fake/reranker", "VLLM_MODEL": "fake/generator"}
    for service in ("embed", "vllm"):
        assert record["images"][service]["id"] == image_of(stack, service) == id_of(record["images"][service]["kept"])


def test_an_unchanged_up_makes_no_new_record_and_a_changed_one_does(stack: Qmdctl) -> None:
    assert stack.run("up", "--skip-checks").status == 0
    assert len(history(stack).records) == 1
    stack.set(BATCH_SIZE="8")
    assert stack.run("up", "--skip-checks").status == 0
    listed = stack.run("history", "--json").json["records"]
    assert [(one["number"], one["current"], one["changed"]) for one in listed] == [
        (1, False, ["the first one"]),
        (2, True, ["settings alone"]),
    ]
    details = stack.run("history", "2").out
    assert "Against number 1:" in details
    assert "+BATCH_SIZE=8" in details


def test_upgrade_to_an_image_that_works(stack: Qmdctl, images: dict[str, str]) -> None:
    planned = stack.run("upgrade", "--dry-run", "--skip-checks", "--image", f"vllm={images['second']}", "--json")
    assert (planned.status, planned.json["status"]) == (0, "planned"), planned.err
    assert stack.run("upgrade", "--skip-checks", "--image", f"vllm={images['second']}").status == 2  # nobody can be asked
    assert image_of(stack, "vllm") == id_of(images["first"])
    done = upgrade(stack, "--image", f"vllm={images['second']}", "--json")
    assert done.status == 0, done.err
    assert (done.json["status"], done.json["from"], done.json["number"]) == ("upgraded", 2, 3)
    assert "uv tool install" not in done.err, "no file of the checkout changed"
    assert image_of(stack, "vllm") == id_of(images["second"])
    assert stack.value("VLLM_IMAGE") == images["second"]
    there = history(stack)
    assert between(there.before(current(stack)), current(stack)) == [f"vllm: {images['first']} → {images['second']}"]
    assert not (stack.folder / ".qmdctl/upgrade.json").exists()


def test_an_image_that_never_becomes_healthy_is_gone_back_from(stack: Qmdctl, images: dict[str, str]) -> None:
    before = (stack.folder / ".env").read_text()
    embed = docker("inspect", "--format", "{{.Id}}", container(stack, "embed"))
    done = upgrade(stack, "--image", f"vllm={images['broken']}")
    assert done.status == 1, done.err
    assert "it cannot load" in done.err
    assert "What ran before serves again." in done.err
    serves(stack)
    assert image_of(stack, "vllm") == id_of(images["second"])
    assert (stack.folder / ".env").read_text() == before
    assert docker("inspect", "--format", "{{.Id}}", container(stack, "embed")) == embed
    last = history(stack).records[-1]
    assert (last.number, last.result, current(stack).number) == (4, "failed", 3)
    assert stack.run("rollback", "4", "--yes").status == 2


def test_upgrade_to_the_newest_release_carries_renamed_settings_over(stack: Qmdctl) -> None:
    compose = (stack.folder / "compose.yaml").read_text()
    here = git(stack.folder, "rev-parse", "HEAD")
    (stack.folder / "compose.yaml").write_text(compose.replace("BATCH_SIZE", "BATCH_TEXTS"))
    table = stack.folder / "qmdctl/releases/renames.yaml"
    table.parent.mkdir(parents=True)
    table.write_text("renames:\n  - {from: BATCH_SIZE, to: BATCH_TEXTS, since: 0.2.0}\n")
    release(stack.folder, "v0.2.0", "")
    git(stack.folder, "checkout", "--quiet", "-B", "main", here)
    (stack.folder / "CHANGELOG.md").write_text("edited\n")
    refused = upgrade(stack)
    assert (refused.status, "CHANGELOG.md" in refused.err) == (2, True), refused.err
    git(stack.folder, "checkout", "--", "CHANGELOG.md")
    done = upgrade(stack)
    assert done.status == 0, done.err
    assert "renamed since 0.2.0: BATCH_SIZE is BATCH_TEXTS in .env" in done.err
    assert "- What v0.2.0 brings." in done.err
    assert f"uv tool install --reinstall {stack.folder}, or pipx install --force {stack.folder}" in done.err
    assert git(stack.folder, "describe", "--tags", "--exact-match") == "v0.2.0"
    assert stack.value("BATCH_TEXTS") == "8"
    assert "SIZE=8" in docker("inspect", "--format", "{{.Config.Env}}", container(stack, "embed"))
    label = docker("inspect", "--format", "{{.Config.Labels.made}}", container(stack, "embed"))
    assert label.endswith("v0.2.0")
    assert current(stack).title == "upgrade to v0.2.0"
    assert not (stack.folder / ".qmdctl/next").exists()
    assert upgrade(stack).out.startswith("The newest release is in this checkout already (v0.2.0).")
    serves(stack)


def test_a_release_that_answers_wrong_is_gone_back_from(stack: Qmdctl) -> None:
    """It becomes healthy; only a real request shows it."""
    before = image_of(stack, "embed")
    released(stack, "v0.3.0", "answer nan")
    done = upgrade(stack, "--json")
    assert done.status == 1, done.err
    assert "A real request fails: embed, embedding" in done.json["error"]
    assert "What ran before serves again." in done.json["error"]
    assert git(stack.folder, "describe", "--tags", "--exact-match") == "v0.2.0"
    assert image_of(stack, "embed") == before == id_of(f"{stack.value('COMPOSE_PROJECT_NAME')}-embed:0.1.0")
    serves(stack)
    assert stack.run("status").status == 0


def test_rollback_brings_files_settings_and_the_very_images_back(stack: Qmdctl, images: dict[str, str]) -> None:
    first = json.loads((stack.folder / ".qmdctl/history/0001/record.json").read_text())
    done = stack.run("rollback", "1", "--yes", "--skip-checks")
    assert done.status == 0, done.err
    assert {service: image_of(stack, service) for service in ("embed", "vllm")} == {
        service: image["id"] for service, image in first["images"].items()
    }
    assert git(stack.folder, "rev-parse", "HEAD") == first["release"]["commit"]
    assert stack.value("BATCH_SIZE") == "7"
    assert stack.value("UPSTREAM_TOKEN") == SECRET
    assert current(stack).title == "rollback to 1"
    serves(stack)
    # What follows keeps it: qmdctl, Compose alone, and Compose told to build.
    ids = [docker("inspect", "--format", "{{.Id}}", container(stack, service)) for service in ("embed", "vllm")]
    again = stack.run("up", "--skip-checks", "--json")
    assert (again.status, again.json["status"]) == (0, "running"), again.err
    environment = {**stack.full_environment()}
    subprocess.run(["docker", "compose", "up", "--detach"], cwd=stack.folder, env=environment, check=True, capture_output=True)
    assert [docker("inspect", "--format", "{{.Id}}", container(stack, service)) for service in ("embed", "vllm")] == ids
    docker("image", "rm", f"{stack.value('COMPOSE_PROJECT_NAME')}-embed:0.1.0")
    assert stack.run("up", "--skip-checks").status == 0
    assert image_of(stack, "embed") == first["images"]["embed"]["id"]


def test_ctrl_c_while_it_builds_changes_nothing(stack: Qmdctl) -> None:
    released(stack, "v0.4.0", "", "RUN sleep 300\n")
    before = (git(stack.folder, "rev-parse", "HEAD"), (stack.folder / ".env").read_text(), image_of(stack, "embed"))
    with stack.start("upgrade", "v0.4.0", "--yes", "--skip-checks") as process:
        assert process.stderr
        assert any("RUN sleep 300" in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        err = process.stderr.read()
    assert process.returncode == 130, err
    assert "Interrupted. Nothing was changed" in err
    assert (git(stack.folder, "rev-parse", "HEAD"), (stack.folder / ".env").read_text(), image_of(stack, "embed")) == before
    assert not (stack.folder / ".qmdctl/upgrade.json").exists()
    assert not (stack.folder / ".qmdctl/next").exists()
    serves(stack)


def test_a_second_one_is_told_of_the_first_and_ctrl_c_goes_back(stack: Qmdctl, images: dict[str, str]) -> None:
    before = image_of(stack, "vllm")
    with stack.start("upgrade", "--yes", "--skip-checks", "--image", f"vllm={images['hanging']}") as first:
        poll(lambda: image_of(stack, "vllm") != before, 60, "the switch")
        second = stack.run("rollback", "--yes")
        assert second.status == 1
        assert f"qmdctl upgrade, process {first.pid}" in second.err
        first.send_signal(signal.SIGINT)
        _, err = first.communicate(timeout=60)
    assert first.returncode == 130, err
    assert "Interrupted. What ran before serves again." in err
    assert image_of(stack, "vllm") == before
    serves(stack)


def test_one_that_was_killed_is_found_and_undone(stack: Qmdctl, images: dict[str, str]) -> None:
    """As by a power cut."""
    before, env = image_of(stack, "vllm"), (stack.folder / ".env").read_text()
    with stack.start("upgrade", "--yes", "--skip-checks", "--image", f"vllm={images['hanging']}", start_new_session=True) as first:
        poll(lambda: image_of(stack, "vllm") != before, 60, "the switch")
        first.kill()
        children = subprocess.run(["ps", "-o", "pid=", "--sid", str(first.pid)], capture_output=True, text=True, check=False).stdout.split()
        subprocess.run(["kill", "-9", *children], check=False, capture_output=True)
        first.communicate(timeout=30)
    assert stat.S_IMODE((stack.folder / ".qmdctl/upgrade.json").stat().st_mode) == 0o600
    for verb in ("upgrade", "rollback"):
        refused = stack.run(verb, "--yes")
        assert refused.status == 2, refused.err
        assert "at the step “Bring it up”" in refused.err
        assert "qmdctl upgrade --undo goes back" in refused.err
    assert "It was cut off" in stack.run("up", "--no-wait", "--skip-checks").err
    done = stack.run("upgrade", "--undo")
    assert (done.status, done.out) == (0, "Gone back. What ran before serves again.\n"), done.err
    assert image_of(stack, "vllm") == before
    assert (stack.folder / ".env").read_text() == env
    assert stack.run("upgrade", "--undo").out == "Nothing was cut off.\n"
    serves(stack)


def test_one_that_was_killed_can_go_on(stack: Qmdctl, images: dict[str, str]) -> None:
    """The journal as it is when a power cut comes between the file and the start."""
    text = (stack.folder / ".env").read_text()
    steps = [
        {"kind": "before", "title": "What runs now", "facts": {"names": {}, "running": True}, "state": "done"},
        {
            "kind": "file",
            "title": "Write .env",
            "facts": {"path": ".env", "before": text, "after": f"{text}VLLM_IMAGE={images['second']}\n"},
            "state": "begun",
        },
        {"kind": "up", "title": "Bring it up", "facts": {"options": ["--skip-checks"]}, "state": "planned"},
        {"kind": "verify", "title": "Send real requests", "facts": {"excused": []}, "state": "planned"},
    ]
    journal = {"version": 1, "verb": "upgrade", "title": "image vllm=second", "steps": steps}
    (stack.folder / ".qmdctl/upgrade.json").write_text(json.dumps(journal))
    done = stack.run("upgrade", "--resume")
    assert done.status == 0, done.err
    assert image_of(stack, "vllm") == id_of(images["second"])
    assert current(stack).title == "image vllm=second"


def test_a_full_disk_costs_the_record_and_not_the_start(stack: Qmdctl, tmp_path: Path) -> None:
    require("root", Path("/proc/self/status").read_text().find("\nUid:\t0\t") > 0, "only root can mount a disk")
    folder, count = stack.folder / ".qmdctl/history", len(history(stack).records)
    kept = tmp_path / "history"
    shutil.copytree(folder, kept)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)], check=True)
    try:
        for one in kept.iterdir():
            shutil.copytree(one, folder / one.name)
        subprocess.run(["dd", "if=/dev/zero", f"of={folder}/filler", "bs=4k"], capture_output=True, check=False)
        stack.set(BATCH_SIZE="9")
        done = stack.run("up", "--skip-checks")
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
    assert done.status == 0, done.err
    assert "This start is not in the history: No space left on device. The stack runs all the same." in done.err
    assert len(history(stack).records) == count
    tags = docker("images", "--format", "{{.Tag}}", "--filter", f"reference={stack.value('COMPOSE_PROJECT_NAME')}-*")
    assert f"release-{count + 1:04}" not in tags


def test_rollback_names_what_is_gone_before_anything_changes(stack: Qmdctl) -> None:
    assert stack.run("up", "--skip-checks").status == 0
    number = next(one.number for one in history(stack).records if one.title == "upgrade to v0.2.0")
    name = f"{stack.value('COMPOSE_PROJECT_NAME')}-embed:release-{number:04}"
    image = id_of(name)
    docker("image", "rm", *docker("image", "inspect", "--format", '{{join .RepoTags " "}}', image).split())
    text = (stack.folder / ".env").read_text()
    done = stack.run("rollback", str(number), "--yes")
    assert done.status == 3
    assert f"Number {number} cannot come back: The image of embed is gone" in done.err
    assert "builds it again" in done.err
    assert (stack.folder / ".env").read_text() == text
    serves(stack)


def test_prune_removes_records_and_their_tags_but_not_what_runs(stack: Qmdctl) -> None:
    project = stack.value("COMPOSE_PROJECT_NAME")
    numbers = [one.number for one in history(stack).records]
    assert stack.run("history", "prune", "--keep", "2").status == 2  # nobody can be asked
    done = stack.run("history", "prune", "--keep", "2", "--yes", "--json")
    assert done.status == 0, done.err
    left = [one.number for one in history(stack).records]
    assert left[-2:] == numbers[-2:]
    # .env names the image kept of number 1.
    assert left == [1, *numbers[-2:]]
    assert done.json["pruned"] == [number for number in numbers if number not in left]
    tags = docker("images", "--format", "{{.Tag}}", "--filter", f"reference={project}-*").split()
    assert {f"release-{number:04}" for number in left} >= {tag for tag in tags if tag.startswith("release-")}
    assert stack.run("up", "--skip-checks").status == 0
    serves(stack)
