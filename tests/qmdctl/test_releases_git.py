"""What an upgrade makes of a real git checkout: names, releases, what changes, the switch and the way back; and rollback's checks."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from qmdctl import env_file
from qmdctl.errors import ConfigurationError, QmdError
from qmdctl.project import Project
from qmdctl.releases import rollback, upgrade
from qmdctl.releases.checkout import Checkout, Target
from qmdctl.releases.journal import BEGUN, DONE, Journal
from qmdctl.releases.record import History, Image, Record, Release, Texts
from qmdctl.releases.steps import Machine, checkout_step, do, env_step, file_step, undo
from qmdctl.settings import Settings, load_settings
from qmdctl.terminal import Terminal
from tests.qmdctl.conftest import Run

COMMIT = "c" * 40


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false", "-c", "protocol.file.allow=always"]
    return subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def commit(folder: Path, message: str, tag: str = "", **files: str) -> str:
    for name, text in {"note": message, **files}.items():
        (folder / name.replace("_yaml", ".yaml").replace("_md", ".md")).write_text(text)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", message)
    if tag:
        git(folder, "tag", tag)
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def checkout(folder: Path, tmp_path: Path) -> Checkout:
    """A clone at v0.1.0 of a project whose origin has v0.2.0 as well, a pre-release and a branch."""
    (folder / ".gitignore").write_text(".env\n.qmdctl/\n")
    git(folder, "init", "--quiet", "--initial-branch", "main")
    commit(folder, "first", "v0.1.0", CHANGELOG_md="# Changelog\n")
    here = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(folder), str(here))
    compose = (folder / "compose.yaml").read_text().replace("MAX_BATCH_SIZE", "MAX_BATCH_TEXTS").replace("vllm:1", "${VLLM_IMAGE:-vllm:2}")
    commit(folder, "second", "v0.2.0", CHANGELOG_md="# Changelog\n- Faster.\n", compose_yaml=compose)
    commit(folder, "third", "v0.10.0-rc1")
    (here / ".env").write_text("COMPOSE_PROFILES=generation\nEMBED_PORT=8011\n")
    return Checkout(here)


def settings_of(checkout: Checkout) -> Settings:
    return load_settings(Project(checkout.folder, "test"), environment={})


def test_the_newest_release_is_found_and_what_it_brings(checkout: Checkout) -> None:
    first = checkout.commit
    assert checkout.fetch()
    target = upgrade.choose(checkout, None)
    assert target is not None and (target.name, target.branch) == ("v0.2.0", "")
    plan = upgrade.make_plan(checkout, settings_of(checkout), target, {})
    assert plan.data["commits"][0].endswith("second")
    assert plan.data["changelog"] == ["- Faster."]
    assert plan.data["images"] == {"vllm": ["vllm:1", "vllm:2"]}
    assert checkout.commit == first  # planning changes nothing
    git(checkout.folder, "checkout", "--quiet", "v0.2.0")
    assert upgrade.choose(checkout, None) is None


def test_a_setting_that_the_release_does_not_read_is_said(checkout: Checkout) -> None:
    (checkout.folder / ".env").write_text("VLLM_MODEL=a/b\nMAX_BATCH_SIZE=3\n")
    checkout.fetch()
    plan = upgrade.make_plan(checkout, settings_of(checkout), checkout.resolve("v0.2.0"), {})
    assert "MAX_BATCH_SIZE in .env is no longer read" in plan.lines


def test_names_of_releases(checkout: Checkout) -> None:
    checkout.fetch()
    newest = git(checkout.folder, "rev-parse", "origin/main")
    assert checkout.resolve("main") == Target("main", newest, "main")
    assert checkout.resolve(newest[:10]) == Target(newest[:10], newest)
    for name in ("v9", "--force", "", "main:note"):
        with pytest.raises(ConfigurationError):
            checkout.resolve(name)


def test_a_branch_with_commits_of_its_own_is_refused(checkout: Checkout) -> None:
    commit(checkout.folder, "mine")
    checkout.fetch()
    with pytest.raises(ConfigurationError, match="commits of its own"):
        checkout.resolve("main")


def test_no_tags_no_git_and_a_folder_inside_another_checkout(checkout: Checkout, tmp_path: Path) -> None:
    inside = checkout.folder / "inside"
    inside.mkdir()
    assert not Checkout(inside).is_one
    assert not Checkout(tmp_path).is_one
    assert Checkout(tmp_path).release() == Release()
    git(checkout.folder, "tag", "--delete", "v0.1.0")
    with pytest.raises(ConfigurationError, match="no release tags"):
        upgrade.choose(checkout, None)


def test_what_is_checked_out(checkout: Checkout) -> None:
    assert checkout.release() == Release("", checkout.commit, "v0.1.0", "main", False)
    (checkout.folder / "note").write_text("edited")
    assert checkout.release().dirty
    with pytest.raises(ConfigurationError, match="changed here: note"):
        checkout.need_clean()
    git(checkout.folder, "checkout", "--", "note")
    (checkout.folder / "untracked").write_text("mine")
    checkout.need_clean()


@pytest.mark.parametrize("name", ["v0.2.0", "main"])
def test_the_checkout_goes_there_and_back(checkout: Checkout, name: str) -> None:
    checkout.fetch()
    before = (checkout.commit, checkout.branch)
    machine = Machine(checkout.folder, None, Terminal())  # type: ignore[arg-type]
    step = checkout_step(checkout, checkout.resolve(name))
    do(step, machine)
    assert checkout.commit != before[0]
    assert checkout.branch == ("main" if name == "main" else "")
    undo(step, machine, Journal(checkout.folder, "upgrade", "t", [step]))
    assert (checkout.commit, checkout.branch) == before
    undo(step, machine, Journal(checkout.folder, "upgrade", "t", [step]))


class CutOff(Exception):
    """A git that ended before it was through."""


def cut_off_checkout(checkout: Checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    """`Checkout.go` writes the files of the other commit and ends before git moves its index and HEAD, its lock left behind."""

    def half(one: Checkout, commit: str, _: str) -> None:
        git(one.folder, "archive", "--format=tar", "--output=.git/half.tar", commit)
        subprocess.run(["tar", "xf", ".git/half.tar"], cwd=one.folder, check=True)
        (one.folder / ".git/index.lock").touch()
        raise CutOff

    monkeypatch.setattr(Checkout, "go", half)


@pytest.mark.parametrize("way", ["undo", "undo what was being undone", "resume"])
def test_a_checkout_that_was_cut_off_halfway_is_whole_afterwards(
    checkout: Checkout, folder: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    commit(folder, "more", "v0.3.0", extra="theirs")
    checkout.fetch()
    before, target = (checkout.commit, checkout.branch), checkout.resolve("v0.3.0")
    machine = Machine(checkout.folder, None, Terminal())  # type: ignore[arg-type]
    step = checkout_step(checkout, target)
    journal = Journal(checkout.folder, "upgrade", "t", [step])
    step.state = BEGUN
    if way == "undo what was being undone":
        do(step, machine)
        step.state = DONE
    with monkeypatch.context() as patched:
        cut_off_checkout(checkout, patched)
        with pytest.raises(CutOff):
            undo(step, machine, journal) if step.state == DONE else do(step, machine)
    assert checkout.changes()
    if way == "resume":
        step.cut_off = True
        do(step, machine)
        assert (checkout.commit, (checkout.folder / "extra").read_text()) == (target.commit, "theirs")
    undo(step, machine, journal)
    assert (checkout.commit, checkout.branch, checkout.changes()) == (*before, [])
    assert not (checkout.folder / "extra").exists(), "git would not overwrite it the next time"
    checkout.go(target.commit, "")
    assert (checkout.folder / "extra").read_text() == "theirs"


def test_a_file_edited_after_the_checkout_is_not_lost_when_going_back(checkout: Checkout) -> None:
    checkout.fetch()
    machine = Machine(checkout.folder, None, Terminal())  # type: ignore[arg-type]
    step = checkout_step(checkout, checkout.resolve("v0.2.0"))
    do(step, machine)
    step.state = DONE
    (checkout.folder / "note").write_text("mine")
    with pytest.raises(QmdError, match="git checkout"):
        undo(step, machine, Journal(checkout.folder, "upgrade", "t", [step]))
    assert (checkout.folder / "note").read_text() == "mine"


def test_the_remote_that_is_fetched_is_the_one_that_is_looked_at(checkout: Checkout, folder: Path) -> None:
    git(checkout.folder, "remote", "add", "backup", str(folder))
    git(checkout.folder, "fetch", "--quiet", "backup")
    commit(folder, "newer")
    checkout.fetch()
    assert checkout.resolve("main").commit == git(checkout.folder, "rev-parse", "origin/main")


def test_an_env_that_was_edited_while_images_were_pulled_is_not_overwritten(checkout: Checkout) -> None:
    settings = settings_of(checkout)
    path = checkout.folder / ".env"
    path.write_text(f"{path.read_text()}API_KEYS_FILE=./secrets/api_keys\n")
    with pytest.raises(ConfigurationError, match=r"\.env was edited meanwhile"):
        env_step(settings, "A=1\n")
    step = file_step(checkout.folder, path, "A=1\n", "Write .env")
    path.write_text("A=2\n")
    with pytest.raises(QmdError, match=r"\.env was edited meanwhile"):
        do(step, Machine(checkout.folder, None, Terminal()))  # type: ignore[arg-type]
    assert path.read_text() == "A=2\n"


def test_an_untracked_file_in_the_way_is_not_overwritten(checkout: Checkout, folder: Path) -> None:
    commit(folder, "more", "v0.3.0", extra="theirs")
    (checkout.folder / "extra").write_text("mine")
    checkout.fetch()
    with pytest.raises(QmdError, match="git checkout"):
        checkout.go(checkout.resolve("v0.3.0").commit, "")
    assert (checkout.folder / "extra").read_text() == "mine"


def test_an_env_that_was_edited_since_is_kept_when_going_back(checkout: Checkout) -> None:
    path = checkout.folder / ".env"
    before = path.read_text()
    step = file_step(checkout.folder, path, "A=1\n", "Write .env")
    machine = Machine(checkout.folder, None, Terminal())  # type: ignore[arg-type]
    do(step, machine)
    (checkout.folder / ".qmdctl").mkdir()
    path.write_text("A=2\n")
    undo(step, machine, Journal(checkout.folder, "upgrade", "t", [step]))
    assert path.read_text() == before
    assert (checkout.folder / ".qmdctl/env.edited").read_text() == "A=2\n"


def test_verbs_without_an_engine_and_with_nonsense(checkout: Checkout, qmdctl: Run) -> None:
    for arguments, status in (
        (["upgrade", "--yes"], 3),
        (["upgrade", "v1", "--undo"], 2),
        (["rollback", "7"], 2),
        (["history"], 0),
        (["history", "x"], 2),
        (["history", "prune"], 2),
        (["history", "prune", "--keep", "0"], 2),
        (["upgrade", "--undo"], 0),
    ):
        done = qmdctl(*arguments, cwd=checkout.folder)
        assert done.returncode == status, (arguments, done.stderr)
        assert "Traceback" not in done.stderr
        assert status == 0 or "→" in done.stderr or "Usage" in done.stderr


def test_images_of_services_that_no_setting_names(checkout: Checkout) -> None:
    settings = settings_of(checkout)
    assert upgrade.parse_images(["embed=a:1"], settings) == {"embed": ("EMBED_IMAGE", "a:1")}
    for text in ("vllm=a:1", "embed", "nothing=a"):
        with pytest.raises(ConfigurationError, match="--image"):
            upgrade.parse_images([text], settings)


ENV = "COMPOSE_PROFILES=generation\nEMBED_PORT=8011\nEMBED_MODEL=a/b\n# HF_TOKEN=…\n"
EMBED = Image("qmd-embed:0.1.0", "sha256:1", key="EMBED_IMAGE", kept="qmd-embed:release-0001")
VLLM = Image("vllm:1", "sha256:2", "vllm@sha256:9")


def recorded(checkout: Checkout, **fields: object) -> tuple[Record, History]:
    values: dict[str, object] = {
        "number": 1,
        "at": "2026-11-26T05:00:00+00:00",
        "title": "up",
        "release": checkout.release(),
        "services": ["embed"],
        "images": {"embed": EMBED, "vllm": VLLM},
        "models": {"EMBED_MODEL": f"a/b@{COMMIT}"},
        "secret_keys": ["HF_TOKEN"],
        **fields,
    }
    record = Record(**values)  # type: ignore[arg-type]
    there = History(checkout.folder)
    there.write(record, Texts("services: {embed: {}}\n", ENV))
    return record, there


ALL = {"sha256:1": "sha256:1", "sha256:2": "sha256:2", "vllm:1": "sha256:2", "qmd-embed:0.1.0": "sha256:1"}
DOWNLOADS = {"a/b": {"main": {"commit": COMMIT}}}


def test_all_that_is_there_is_no_problem(checkout: Checkout) -> None:
    record, there = recorded(checkout)
    assert rollback.problems(record, there, checkout, lambda name: (ALL.get(name, ""), ""), DOWNLOADS) == []


def test_everything_that_is_gone_is_named_at_once(checkout: Checkout) -> None:
    release = Release("0.0.9", "d" * 40)
    record, there = recorded(checkout, release=release, images={"embed": EMBED, "vllm": Image("vllm:1", "sha256:2")})
    (checkout.folder / ".qmdctl/history/0001/compose.yaml").write_text("}")
    names = {"sha256:2": "sha256:2", "vllm:1": "sha256:8"}
    found = rollback.problems(record, there, checkout, lambda name: (names.get(name, ""), ""), {})
    whats = [one.what for one in found]
    assert len(whats) == 5
    assert "compose file of number 1 cannot be read" in whats[0]
    assert "ddddddddd is not in this checkout" in whats[1]
    assert "image of embed is gone" in whats[2]
    assert "vllm:1 is another image by now" in whats[3]
    assert found[3].fix == "docker tag sha256:2 vllm:1"
    assert "a/b at ccccccccc is not in the cache" in whats[4]
    assert all(one.fix for one in found)


def test_env_comes_back_but_for_secrets_and_names_the_very_images(checkout: Checkout) -> None:
    record, there = recorded(checkout)
    (checkout.folder / ".env").write_text("# Mine.\nCOMPOSE_PROFILES=generation\nEMBED_PORT=8012\nHF_TOKEN=now\nMAX_BATCH_SIZE=4\n")
    downloads = {"a/b": {"main": {"commit": "d" * 40}, COMMIT: {"commit": COMMIT}}}
    texts = rollback.check_texts(there, record)
    plan = rollback.make_plan(record, texts, settings_of(checkout), checkout, lambda name: (ALL.get(name, ""), ""), downloads)
    env = env_file.parse(plan.env).check()
    assert env.values == {
        "COMPOSE_PROFILES": "generation",
        "EMBED_PORT": "8011",
        "EMBED_MODEL": "a/b",
        "EMBED_REVISION": COMMIT,
        "HF_TOKEN": "now",
    }
    assert env.lines[0] == "# Mine."
    assert plan.target is None
    assert ".env: MAX_BATCH_SIZE is not set any more" in plan.lines


def test_an_image_that_is_built_here_is_named_by_its_kept_tag(checkout: Checkout) -> None:
    """By its own name the next `up` would build it."""
    record, _ = recorded(checkout)
    env = env_file.parse("")
    assert rollback.pin_images(env, record, lambda name: (ALL.get(name, ""), ""), {"embed"}) == ["EMBED_IMAGE"]
    assert env.values == {"EMBED_IMAGE": "qmd-embed:release-0001"}
    assert rollback.pin_images(env, record, lambda name: (ALL.get(name, ""), ""), {"embed"}) == []


def test_an_image_that_the_files_no_longer_name_is_named_in_env(checkout: Checkout) -> None:
    """Without a checkout to go to, the default is that of the present files."""
    record, _ = recorded(checkout, images={"vllm": replace(VLLM, key="VLLM_IMAGE", kept="qmd-vllm:release-0001")})
    for defaults, values in (({"VLLM_IMAGE": "vllm:1"}, {}), ({"VLLM_IMAGE": "vllm:2"}, {"VLLM_IMAGE": "vllm:1"}), (None, {})):
        env = env_file.parse("")
        rollback.pin_images(env, record, lambda name: (ALL.get(name, ""), ""), {"embed"}, defaults)
        assert env.values == values


def test_an_image_that_a_registry_has_is_pulled_by_digest(checkout: Checkout) -> None:
    vllm = Image("r/vllm:1", "sha256:2", "r/vllm@sha256:9", "VLLM_IMAGE", "qmd-vllm:release-0001")
    record, there = recorded(checkout, images={"embed": EMBED, "vllm": vllm})
    known = {"sha256:1": "sha256:1", "r/vllm:1": "sha256:5"}
    assert rollback.problems(record, there, checkout, lambda name: (known.get(name, ""), ""), DOWNLOADS) == []
    texts = rollback.check_texts(there, record)
    plan = rollback.make_plan(record, texts, settings_of(checkout), checkout, lambda name: (known.get(name, ""), ""), None)
    assert plan.pulls == {"r/vllm@sha256:9": "qmd-vllm:release-0001"}
    assert env_file.parse(plan.env).values["VLLM_IMAGE"] == "qmd-vllm:release-0001"


def test_nothing_to_go_back_to(checkout: Checkout) -> None:
    with pytest.raises(ConfigurationError, match="nothing to go back to"):
        rollback.choose(History(checkout.folder), None)
    _, there = recorded(checkout)
    with pytest.raises(ConfigurationError, match="nothing to go back to"):
        rollback.choose(there, None)
