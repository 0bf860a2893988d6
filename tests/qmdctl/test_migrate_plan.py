"""From what was found to values for .env, steps and the journal."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qmdctl import env_file
from qmdctl.commands.migrate import again, project_name
from qmdctl.commands.migrate import go_back as go_back_all
from qmdctl.errors import ConfigurationError, InterruptedByUser, MissingError, QmdError
from qmdctl.native.apply import apply, go_back, need_root, root_commands
from qmdctl.native.containers import NativeContainer
from qmdctl.native.found import Found
from qmdctl.native.journal import DONE, UNDONE, Journal
from qmdctl.native.plan import merge
from qmdctl.native.steps import Machine, env_step, unit_step
from qmdctl.native.tailscale import Entry, Serving
from qmdctl.native.tailscale import entries as serve_entries
from qmdctl.native.units import Manager, Unit, user_name
from qmdctl.native.values import Value, values_from
from qmdctl.native.weights import Cache
from qmdctl.process import Completed
from qmdctl.project import Project
from qmdctl.terminal import Terminal
from tests.qmdctl.conftest import Run
from tests.support.native import service
from tests.support.service import free_port

UNIT = Unit("qmd-embed", Manager(), "/etc/systemd/system/qmd-embed.service", True, True, "active, enabled", ("uvicorn", "embed_rerank:app"))


def vllm(*arguments: str, **fields: Any) -> NativeContainer:
    values: dict[str, Any] = {
        "name": "qmd-vllm",
        "id": "1",
        "image": "vllm:1",
        "command": ("vllm", "serve", *arguments),
        "running": True,
        "state": "running",
        "restart": "no",
        "removes_itself": False,
        "ports": {"8000/tcp": ("127.0.0.1", free_port())},
        "host_network": False,
        "mounts": (),
        "gpus": (),
        "compose_project": "",
        **fields,
    }
    return NativeContainer(**values)


def found(unit: Unit | None = UNIT, container: NativeContainer | None = None, **fields: Any) -> Found:
    values = {"units": [unit] if unit else [], "containers": [container] if container else [], **fields}
    return Found(**{"systemd_problem": "", "stack": [], "serving": Serving(), "caches": [], **values})


def test_an_entry_of_the_node_alone_is_nobodys() -> None:
    """It may lead to the stack itself."""
    entry = Entry("", "https", 8443, "/", "http://127.0.0.1:8001")
    assert not found(None, serving=Serving(node=[entry])).anything
    assert found(UNIT).anything


def test_what_the_running_service_says_comes_first() -> None:
    unit = replace(
        UNIT, environment={"EMBED_MODEL": "edited/since", "DEVICE": "cuda", "HF_TOKEN": "hf_secret", "CUDA_VISIBLE_DEVICES": "1"}
    )
    health = {"models": {"embed": "a/embed", "rerank": "a/rerank"}}
    out = values_from(found(unit, health=health))
    assert {key: out.plain()[key] for key in ("EMBED_MODEL", "RERANK_MODEL", "DEVICE", "EMBED_GPU", "PROMPT_POLICY")} == {
        "EMBED_MODEL": "a/embed",
        "RERANK_MODEL": "a/rerank",
        "DEVICE": "cuda",
        "EMBED_GPU": "1",
        "PROMPT_POLICY": "raw",
    }
    assert out.values["EMBED_MODEL"].origin == "/health of the service that runs"
    assert any("secrets/hf_token" in task for task in out.owner)
    assert "hf_secret" not in str(out)
    assert values_from(found(unit)).plain()["EMBED_MODEL"] == "edited/since"
    assert values_from(found(UNIT)).plain()["EMBED_MODEL"] == "Qwen/Qwen3-Embedding-4B"


def test_names_that_clients_use_for_the_model_stay() -> None:
    serve = ("a/b", "--served-model-name", "expander", "--quantization", "awq", "--api-key", "secret")
    out = values_from(found(None, vllm(*serve)), default_image="vllm:1")
    assert out.plain()["VLLM_EXTRA_ARGS"] == "--quantization awq --served-model-name expander a/b default generate"
    assert "VLLM_IMAGE" not in out.plain(), "the stack's own default"
    assert any("--api-key" in note for note in out.notes)
    assert "secret" not in str(out)


def test_a_ports_origin_is_who_has_it() -> None:
    out = values_from(found(UNIT, vllm(name="qmd-embed", ports={"8001/tcp": ("", 56127)})))
    assert (out.values["EMBED_PORT"].value, out.values["EMBED_PORT"].origin) == ("56127", "container qmd-embed")
    out = values_from(found(replace(UNIT, command=("uvicorn", "--port", "9001"))))
    assert (out.values["EMBED_PORT"].value, out.values["EMBED_PORT"].origin) == ("9001", "unit qmd-embed")


def test_a_model_that_is_a_folder_is_not_carried_over() -> None:
    out = values_from(found(replace(UNIT, environment={"EMBED_MODEL": "/srv/model"}), vllm("/models/x")))
    assert not {"EMBED_MODEL", "VLLM_MODEL"} & set(out.plain())
    assert len([note for note in out.notes if "folder" in note]) == 2


def test_addresses_that_the_stack_will_not_serve_are_named() -> None:
    unit = replace(UNIT, command=("uvicorn", "--host", "0.0.0.0"))
    out = values_from(found(unit, vllm("a/b", ports={"8000/tcp": ("", 8000)})))
    assert [note.split(";")[0] for note in out.notes if "listens on" in note] == [
        "qmd-embed listens on 0.0.0.0",
        "qmd-vllm listens on 0.0.0.0",
    ]


def test_the_owner_of_the_cache_is_the_containers_user() -> None:
    cache = Cache(Path("/home/ada/.cache/huggingface"), "of unit qmd-embed", 1001, 1002, {"a/b": 5}, (Path("/home/ada/x y"),))
    out = values_from(found(caches=[cache]))
    assert (out.plain()["QMD_UID"], out.plain()["QMD_GID"]) == ("1001", "1002")
    assert any("sudo chown -R 1001:1002 '/home/ada/x y'" in task for task in out.owner)
    assert "QMD_UID" not in values_from(found(caches=[cache]), rootless=True).plain()
    roots = replace(cache, uid=0, gid=0)
    out = values_from(found(caches=[roots]), caller=(1000, 1000))
    assert out.plain()["QMD_UID"] == "1000"
    assert any("is root's" in task for task in out.owner)
    unreadable = replace(cache, readable=False, models={})
    assert any("may not be read" in note for note in values_from(found(caches=[unreadable])).notes)


def test_a_service_becomes_the_sidecars_unless_it_is_to_stay() -> None:
    config = {"Services": {"svc:qmd-embed": service("qmd-embed", 8001)}}
    services = {"svc:qmd-embed": list(serve_entries(config["Services"]["svc:qmd-embed"], "svc:qmd-embed"))}
    serving = Serving(config, services, advertised=frozenset(services), host="spark", tags=("tag:a", "tag:b"))
    out = values_from(found(serving=serving)).plain()
    assert (out["TAILNET_SERVICE"], out["EMBED_HOSTNAME"], out["TS_TAGS"]) == ("1", "qmd-embed-spark", "tag:a,tag:b")
    assert "TAILNET_SERVICE" not in values_from(found(serving=serving), keep_services=True).plain()
    drained = replace(serving, advertised=frozenset())
    assert "TAILNET_SERVICE" not in values_from(found(serving=drained)).plain()


def test_values_go_into_an_env_that_is_there() -> None:
    file = env_file.parse("A=1\nB=2\nC=\n# D=0\n")
    values = {key: Value(key, value, "x") for key, value in {"A": "1", "B": "3", "C": "4", "D": "5", "E": "6"}.items()}
    put, kept = merge(file, values, overwrite=False)
    assert [value.key for value in put] == ["C", "D", "E"]
    assert [(value.key, there) for value, there in kept] == [("B", "2")]
    assert file.render() == "A=1\nB=2\nC=4\nD=5\nE=6\n"
    merge(file, values, overwrite=True)
    assert file.values["B"] == "3"


def test_the_tailnets_keys_stay_out_where_its_profile_does() -> None:
    keys = {"COMPOSE_PROFILES": "generation,tailnet", "TAILNET_SERVICE": "1", "TS_TAGS": "tag:a"}
    values = {key: Value(key, value, "x") for key, value in keys.items()}
    file = env_file.parse("COMPOSE_PROFILES=generation\n")
    put, kept = merge(file, values, overwrite=False)
    assert (put, [value.key for value, _ in kept]) == ([], ["COMPOSE_PROFILES"])


def test_the_journal_is_on_disk_before_a_step(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert journal.open == []
    journal.prepare()
    entry = journal.begin("unit", "stop it", {"name": "qmd-embed"})
    assert [(one.kind, one.state) for one in Journal(tmp_path).open] == [("unit", "begun")]
    journal.mark(entry, DONE)
    journal.mark(journal.begin("env", "write", {"copy": None}), DONE)
    assert [one.kind for one in Journal(tmp_path).open] == ["env", "unit"], "the last first"
    assert (tmp_path / ".migration/.gitignore").read_text() == "*\n"
    assert stat.S_IMODE((tmp_path / ".migration").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / ".migration/journal.json").stat().st_mode) == 0o600
    for one in journal.open:
        journal.mark(one, UNDONE)
    journal = Journal(tmp_path)
    assert journal.open == []
    journal.prepare()
    assert list(journal) == []


def test_an_env_edited_between_two_migrations_is_kept_when_going_back(tmp_path: Path) -> None:
    env, journal = tmp_path / ".env", Journal(tmp_path)
    machine = Machine(tmp_path, None, journal, Terminal())  # type: ignore[arg-type]
    for edit in ("A=edited once\n", "A=edited twice\n"):
        journal.prepare()
        apply([env_step(env, "A=written\n")], machine)
        env.write_text(edit)
    assert len(go_back(journal.open, machine)) == 2
    assert not env.exists()
    assert [(tmp_path / f".migration/env.edited.{number}").read_text() for number in (1, 2)] == ["A=edited twice\n", "A=edited once\n"]
    journal.prepare()
    apply([env_step(env, "A=written\n")], machine)
    assert go_back(journal.open, machine) == []


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is damaged"), ('{"version": 9, "steps": []}', "another version"), ("[]", "is damaged")]
)
def test_a_journal_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / ".migration").mkdir()
    (tmp_path / ".migration/journal.json").write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        Journal(tmp_path)


def test_root_is_asked_for_before_any_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    asked = []

    def run(command: list[str], **options: object) -> Completed:
        asked.append(command)
        return Completed(tuple(command), 1, "", "sudo: a password is required")

    machine = Machine(tmp_path, None, Journal(tmp_path), Terminal(), runner=run)  # type: ignore[arg-type]
    step = unit_step(UNIT)
    assert step.shown() == ["sudo systemctl disable qmd-embed.service", "sudo systemctl stop qmd-embed.service"]
    assert unit_step(replace(UNIT, manager=Manager("ada"))).shown()[0] == "systemctl --user disable qmd-embed.service"
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    with pytest.raises(MissingError, match="sudo systemctl disable qmd-embed") as caught:
        need_root(step.shown(), machine, "migrate")
    assert caught.value.fix.startswith("run it on a terminal, or: sudo /usr/bin/qmdctl migrate")
    assert asked == [["sudo", "-n", "true"]]
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(MissingError, match="there is no sudo here"):
        need_root(step.shown(), machine, "migrate")
    need_root(["docker stop x"], machine, "migrate")


@pytest.mark.parametrize(("operator", "asked"), [("", True), (user_name(), False)])
def test_going_back_knows_that_tailscale_needs_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operator: str, asked: bool) -> None:
    def run(command: list[str], **options: object) -> Completed:
        config = {"Services": {"svc:qmd-embed": service("qmd-embed", 8001)}}
        answer = config if command[1] == "serve" else {"OperatorUser": operator}
        return Completed(tuple(command), 0, json.dumps(answer), "")

    monkeypatch.setattr("qmdctl.native.tailscale.os.geteuid", lambda: os.getuid() or 1000)
    monkeypatch.setattr("qmdctl.native.tailscale.user_name", lambda: operator or "ada")
    journal = Journal(tmp_path)
    journal.prepare()
    journal.begin("service", "withdraw", {"name": "svc:qmd-embed", "config": {}})
    journal.begin("serve", "end", Entry("", "https", 8443, "/", "http://127.0.0.1:8001").payload())
    machine = Machine(tmp_path, None, journal, Terminal(), runner=run)  # type: ignore[arg-type]
    commands = root_commands(journal.open, machine)
    assert (
        commands
        == [
            "sudo tailscale serve --bg --https=8443 http://127.0.0.1:8001",
            "sudo tailscale serve advertise svc:qmd-embed",
        ]
        * asked
    )


def test_ctrl_c_in_a_step_says_how_to_go_on(tmp_path: Path) -> None:
    def run(command: list[str], **options: object) -> Completed:
        raise KeyboardInterrupt

    journal = Journal(tmp_path)
    journal.prepare()
    machine = Machine(tmp_path, None, journal, Terminal(), runner=run)  # type: ignore[arg-type]
    with pytest.raises(InterruptedByUser) as caught:
        apply([env_step(tmp_path / ".env", "A=1\n"), unit_step(UNIT)], machine)
    assert caught.value.fix == "qmdctl migrate finishes, qmdctl migrate --undo goes back"
    assert [entry.state for entry in Journal(tmp_path)] == ["done", "begun"]
    with pytest.raises(InterruptedByUser, match="while going back"):
        go_back(journal.open, machine)


def test_going_back_takes_an_env_that_other_verbs_refuse(folder: Path) -> None:
    project = Project(folder, "test")
    (folder / ".env").write_text("COMPOSE_PROJECT_NAME=mine\n")
    assert project_name(project) == ("mine", True)
    (folder / ".env").write_text("COMPOSE_PROJECT_NAME=mine\nEMBED_MODLE=x\n")
    assert project_name(project) == ("mine", False)
    called: list[list[str]] = []

    def run(command: list[str], **options: object) -> Completed:
        called.append(command)
        return Completed(tuple(command), 0, "", "")

    fake = SimpleNamespace(containers=lambda name: {"embed": SimpleNamespace(name="qmd-embed")} if name == "mine" else {})
    journal = Journal(folder)
    journal.prepare()
    journal.begin("env", "write", {"copy": None})
    go_back_all(Machine(folder, fake, journal, Terminal(json_output=True), runner=run), project, True, False)  # type: ignore[arg-type]
    assert called == [["docker", "stop", "qmd-embed"], ["docker", "rm", "qmd-embed"]]
    assert not (folder / ".env").exists()


def test_without_an_engine_nothing_is_planned(qmdctl: Run, folder: Path) -> None:
    done = qmdctl("-C", str(folder), "migrate", "--yes", "--json")
    assert done.returncode == 3, done.stderr
    assert "No Docker engine" in done.stdout
    assert sorted(os.listdir(folder)) == [".env.example", "Dockerfile.embed", "compose.cpu.yaml", "compose.yaml"]


def test_another_verb_that_fails_gives_its_exit_status(folder: Path) -> None:
    with pytest.raises(QmdError, match="qmdctl up failed") as caught:
        again(Terminal(), Project(folder, "test"), "up")
    assert caught.value.exit_code == 2, "there is no .env"
