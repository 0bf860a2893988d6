"""The history, what is kept of .env and of the compose file, renamed settings, the journal, and going back over steps."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from qmdctl import env_file
from qmdctl.errors import ConfigurationError, InterruptedByUser, QmdError
from qmdctl.project import Project
from qmdctl.releases import apply as applying
from qmdctl.releases import changes, images, redacted, renames, unfinished
from qmdctl.releases.apply import WentBack, apply
from qmdctl.releases.journal import BEGUN, DONE, PLANNED, UNDONE, Journal, Step
from qmdctl.releases.prune import old
from qmdctl.releases.record import FAILED, History, Image, Record, Release, Texts
from qmdctl.releases.snapshot import OFF
from qmdctl.releases.steps import Machine
from qmdctl.terminal import Terminal

TEXTS = Texts("services: {embed: {}}\n", "EMBED_PORT=8001\n")


def record(number: int, **fields: object) -> Record:
    image = Image("qmd-embed:0.1.0", f"sha256:{number:064}", key="EMBED_IMAGE", kept=f"qmd-embed:release-{number:04}")
    whole = Record(number, "2026-11-26T05:00:00+00:00", "up", Release("0.1.0", "a" * 40), ["embed"], {"embed": image}, {})
    return replace(whole, **fields)  # type: ignore[arg-type]


def written(folder: Path, *records: Record) -> History:
    there = History(folder)
    for one in records:
        there.write(one, TEXTS)
    return History(folder)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    models = {"EMBED_MODEL": "a/b@" + "c" * 40}
    whole = record(1, models=models, fingerprint="f", seconds=12.5, secret_keys=["HF_TOKEN"])
    there = written(tmp_path, whole)
    assert there.records == [whole]
    assert there.texts(whole) == TEXTS
    assert there.next_number == 2
    assert not there.notes


@pytest.mark.parametrize("text", ["", '{"version": 1, "num', "[]", '{"version": 2}', '{"version": 1, "images": 3}', "null"])
def test_a_damaged_record_is_left_out_with_a_note(tmp_path: Path, text: str) -> None:
    written(tmp_path, record(1), record(2), record(3))
    (tmp_path / ".qmdctl/history/0002/record.json").write_text(text)
    there = History(tmp_path)
    assert [one.number for one in there.records] == [1, 3]
    assert "0002 is left out: its record cannot be read" in there.notes[0]
    assert there.next_number == 4


def test_a_record_that_was_half_written_is_none(tmp_path: Path) -> None:
    written(tmp_path, record(1))
    left = tmp_path / ".qmdctl/history/.new-77"
    left.mkdir()
    (left / "record.json").write_text("{")
    assert [one.number for one in History(tmp_path).records] == [1]
    written(tmp_path, record(2))
    assert not left.exists()


def test_where_nothing_can_be_written_no_part_of_a_record_stays(tmp_path: Path) -> None:
    (tmp_path / ".qmdctl").write_text("a file where the folder should be")
    with pytest.raises(OSError):
        History(tmp_path).write(record(1), TEXTS)
    assert History(tmp_path).records == []


def test_current_and_before_pass_over_what_failed(tmp_path: Path) -> None:
    there = written(tmp_path, record(1), record(2, result=FAILED, note="no"), record(3), record(4, result=FAILED, note="no"))
    assert there.current == record(3)
    assert there.before(record(3)) == record(1)
    with pytest.raises(ConfigurationError, match="no number 9"):
        there.find(9)


ENV = """# Keys. HF_TOKEN=hf_planted_aaaaaaaa
EMBED_PORT=8001  # hf_planted_bbbbbbbb
HF_TOKEN=planted-cc
HTTPS_PROXY=http://me:planted-dd@proxy:3128
VLLM_EXTRA_ARGS='--api-key planted-ee --quantization awq'
API_KEYS_FILE=./secrets/api_keys
# GRAFANA_PASSWORD=planted-ff
X_PASSPHRASE=planted-gg
TS_EXTRA_ARGS='--authkey planted-jj --qr'
MY_COOKIE=planted-hh
AWS_ACCESS_KEY_ID=planted-ii
EMPTY_PASSWD=
# VLLM_DTYPE=auto
"""


def test_env_is_kept_without_secrets() -> None:
    text, secrets = redacted.env_text(env_file.parse(ENV))
    assert "planted" not in text
    assert secrets == ["HF_TOKEN", "HTTPS_PROXY", "VLLM_EXTRA_ARGS", "X_PASSPHRASE", "TS_EXTRA_ARGS", "MY_COOKIE", "AWS_ACCESS_KEY_ID"]
    kept = env_file.parse(text).check()
    assert kept.values == {"EMBED_PORT": "8001", "API_KEYS_FILE": "./secrets/api_keys", "EMPTY_PASSWD": ""}
    assert "# VLLM_DTYPE=auto" in kept.lines
    assert redacted.env_text(kept) == (text, [])


def test_the_compose_file_is_kept_without_secrets() -> None:
    environment = {
        "HF_TOKEN": "planted-1",
        "PROXY": "http://me:planted-2@proxy",
        "EMBED_MODEL": "a/b",
        "X_PASSWD": "planted-7",
        "API_KEYS_FILE": "/run/secrets/keys",
    }
    services = {
        "embed": {
            "environment": environment,
            "command": ["serve", "--api-key", "planted-3"],
            "build": {"args": {"PIP_TOKEN": "planted-4"}},
        },
        "other": {
            "environment": ["GRAFANA_PASSWORD=planted-5", "A=b", "X_CREDENTIALS=planted-8"],
            "command": "run --hf-token planted-6",
            "ports": [{"target": 80}],
        },
    }
    text = redacted.compose_text(yaml.safe_dump({"services": services, "secrets": {"hf_token": {"file": "/x/hf_token"}}}))
    assert "planted" not in text
    kept = yaml.safe_load(text)
    assert kept["services"]["embed"]["environment"]["EMBED_MODEL"] == "a/b"
    assert kept["services"]["embed"]["environment"]["API_KEYS_FILE"] == "/run/secrets/keys"
    assert kept["services"]["other"]["environment"][1] == "A=b"
    assert kept["services"]["other"]["ports"] == [{"target": 80}]
    assert kept["secrets"] == {"hf_token": {"file": "/x/hf_token"}}


def test_renamed_settings_keep_value_place_and_comment() -> None:
    env = env_file.parse("# Before.\nexport OLD=1 # why\nOTHER=2\nBOTH_OLD=3\nBOTH_NEW=4\n")
    table = [renames.Rename("OLD", "MIDDLE", "1"), renames.Rename("MIDDLE", "NEW", "2"), renames.Rename("BOTH_OLD", "BOTH_NEW", "2")]
    assert len(renames.apply(env, table)) == 3
    assert env.render() == "# Before.\nexport NEW=1 # why\nOTHER=2\n# BOTH_OLD=3\nBOTH_NEW=4\n"
    assert env_file.parse(env.render()).check().values == env.values == {"NEW": "1", "OTHER": "2", "BOTH_NEW": "4"}
    renames.back(env, table, ["OLD"])
    assert env.values == {"OLD": "1", "OTHER": "2", "BOTH_NEW": "4"}
    assert env.lines[1] == "export OLD=1 # why"


def test_the_table_of_renamed_settings_is_that_of_the_files(tmp_path: Path) -> None:
    assert renames.read(tmp_path) == []
    path = tmp_path / renames.FILE
    path.parent.mkdir(parents=True)
    path.write_text("renames:\n  - {from: A, to: B, since: 0.2.0}\n")
    assert renames.read(tmp_path) == [renames.Rename("A", "B", "0.2.0")]
    path.write_text("renames:\n  - {from: A}\n")
    with pytest.raises(ConfigurationError, match=r"renames\.yaml"):
        renames.read(tmp_path)


def test_this_release_s_own_table_can_be_read() -> None:
    renames.read(Path(__file__).parents[2])


def test_a_pinned_setting_gets_its_value_from_before_back(tmp_path: Path) -> None:
    there = History(tmp_path)
    there.write(record(1), Texts("", "VLLM_IMAGE=vllm:1\n"))
    there.write(record(2), Texts("", "VLLM_IMAGE=qmd-vllm:release-0001\n"))
    env = env_file.parse("EMBED_IMAGE=qmd-embed:release-0001\nVLLM_IMAGE=qmd-vllm:release-0002\nTAILSCALE_IMAGE=mine:3\n")
    assert images.unpin(env, there, ["EMBED_IMAGE", "VLLM_IMAGE", "TAILSCALE_IMAGE"]) == ["EMBED_IMAGE", "VLLM_IMAGE"]
    assert env.values == {"VLLM_IMAGE": "vllm:1", "TAILSCALE_IMAGE": "mine:3"}


def test_which_images_are_never_built(tmp_path: Path) -> None:
    assert images.taken_as_it_is(tmp_path, "qmd-embed:release-0003")
    assert not images.taken_as_it_is(tmp_path, "qmd-embed:0.1.0")
    (tmp_path / ".qmdctl").mkdir()
    (tmp_path / ".qmdctl" / images.NOT_BUILT).write_text("ghcr.io/a/embed:1\n")
    assert images.taken_as_it_is(tmp_path, "ghcr.io/a/embed:1")


def test_what_changed_in_words() -> None:
    before = record(1, models={"EMBED_MODEL": "a/b@1"}, fingerprint="x")
    after = replace(before, number=2, models={"EMBED_MODEL": "c/d@2"}, fingerprint="y", release=Release("0.2.0", "b" * 40, "v0.2.0"))
    assert changes.between(before, after) == [
        "release: 0.1.0 (aaaaaaaaa) → v0.2.0",
        "EMBED_MODEL: a/b@1 → c/d@2",
        "embeddings: another fingerprint (qmd embed -f on each laptop)",
    ]
    assert changes.between(None, before) == ["the first one"]
    assert changes.between(before, replace(before, number=2)) == ["settings alone"]


def test_what_is_pruned_leaves_the_current_and_what_env_names(tmp_path: Path) -> None:
    there = written(tmp_path, *map(record, range(1, 6)), record(6, result=FAILED), record(7, result=FAILED))
    env = env_file.parse("EMBED_IMAGE=qmd-embed:release-0002\n")
    assert [one.number for one in old(there, 1, env)] == [1, 3, 4, 6]
    assert old(there, 7, env) == []


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Steps named `good` write their name to a file and take it out again; `bad` fails, `stop` is Ctrl-C, `stuck` cannot be undone."""
    log = tmp_path / "log"
    log.write_text("")

    def do(step: Step, _: Machine) -> None:
        if step.kind == "bad":
            raise QmdError("it broke", "mend it")
        if step.kind == "stop":
            raise KeyboardInterrupt
        log.write_text(f"{log.read_text()}{step.title} ")

    def undo(step: Step, _: Machine, __: Journal) -> None:
        if step.kind == "stuck":
            raise QmdError("it is stuck", "pull")
        log.write_text(log.read_text().replace(f"{step.title} ", ""))

    monkeypatch.setattr(applying, "do", do)
    monkeypatch.setattr(applying, "undo", undo)
    return Machine(tmp_path, None, Terminal())  # type: ignore[arg-type]


def journal(folder: Path, *kinds: str) -> Journal:
    steps = [Step("before", "what runs", {"names": {}, "running": True}), *(Step(kind, f"{kind}{i}") for i, kind in enumerate(kinds))]
    made = Journal(folder, "upgrade", "upgrade to x", steps)
    made.save()
    return made


def test_steps_are_taken_in_order_and_put_down_before(machine: Machine) -> None:
    apply(journal(machine.project, "good", "good"), machine)
    assert (machine.project / "log").read_text() == "what runs good0 good1 "
    there = Journal.read(machine.project)
    assert there is not None
    assert [step.state for step in there.steps] == [DONE, DONE, DONE]


@pytest.mark.parametrize(("kind", "error", "words"), [("bad", WentBack, "it broke"), ("stop", InterruptedByUser, "Interrupted")])
def test_a_step_that_fails_undoes_those_before_it(machine: Machine, kind: str, error: type[QmdError], words: str) -> None:
    with pytest.raises(error, match=words):
        apply(journal(machine.project, "good", "good", kind, "good"), machine)
    assert (machine.project / "log").read_text() == ""
    assert Journal.read(machine.project) is None


def test_a_disk_that_fills_up_does_not_stop_the_going_back(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the second step on nothing can be put down any more."""
    made = journal(machine.project, "good", "good", "good")
    rename = Path.replace

    def full(path: Path, target: Path) -> Path:
        if target == made.path and made.steps[2].state != PLANNED:
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(WentBack, match="No space left on device") as caught:
        apply(made, machine)
    assert "df -h" in caught.value.fix
    assert (machine.project / "log").read_text() == ""
    assert [step.state for step in made.steps] == [UNDONE, UNDONE, UNDONE, PLANNED]
    assert not made.path.exists()
    assert "Going back went on without it." in capsys.readouterr().err


def test_a_fault_of_the_program_s_own_is_gone_back_from_too(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    good = applying.do

    def do(step: Step, there: Machine) -> None:
        if step.kind == "surprise":
            raise ValueError("nobody thought of it")
        good(step, there)

    monkeypatch.setattr(applying, "do", do)
    with pytest.raises(WentBack, match="ValueError: nobody thought of it"):
        apply(journal(machine.project, "good", "surprise"), machine)
    assert (machine.project / "log").read_text() == ""


def test_where_going_back_fails_too_the_journal_stays(machine: Machine) -> None:
    with pytest.raises(QmdError, match="it is stuck") as caught:
        apply(journal(machine.project, "stuck", "good", "bad"), machine)
    assert caught.value.fix == "pull; then: qmdctl upgrade --undo"
    there = Journal.read(machine.project)
    assert there is not None
    assert [step.state for step in there.steps] == [DONE, DONE, UNDONE, UNDONE]
    assert [step.kind for step in there.taken] == ["stuck", "before"]


def test_one_that_was_cut_off_goes_on_where_it_was(machine: Machine) -> None:
    made = journal(machine.project, "good", "good", "good")
    for step, state in zip(made.steps, (DONE, DONE, BEGUN, PLANNED), strict=True):
        step.state = state
    made.save()
    there = Journal.read(machine.project)
    assert there is not None
    apply(there, machine)
    assert (machine.project / "log").read_text() == "good1 good2 "


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 1}', '{"version": 1, "verb": "u", "title": "t", "steps": [{"x": 1}]}'])
def test_a_damaged_journal_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / ".qmdctl").mkdir()
    (tmp_path / ".qmdctl/upgrade.json").write_text(text)
    with pytest.raises(ConfigurationError, match="is damaged") as caught:
        Journal.read(tmp_path)
    assert "git status" in caught.value.fix


def test_a_journal_of_another_version_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / ".qmdctl").mkdir()
    (tmp_path / ".qmdctl/upgrade.json").write_text(json.dumps({"version": 99}))
    with pytest.raises(ConfigurationError, match="another version"):
        Journal.read(tmp_path)


def test_up_tells_one_that_was_cut_off_and_not_the_one_that_it_belongs_to(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = Project(machine.project, "test")
    unfinished.note(project, Terminal())
    assert capsys.readouterr().err == ""
    journal(machine.project, "good").save()
    unfinished.note(project, Terminal())
    assert "It was cut off: upgrade to x, at the step “what runs”." in capsys.readouterr().err
    monkeypatch.setenv(OFF, "1")  # the upgrade's own `up`
    unfinished.note(project, Terminal())
    assert capsys.readouterr().err == ""
