"""The verbs that need no engine, as a user runs them: exit codes, JSON, help, completion, and errors with their fix."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qmdctl import __version__
from qmdctl.cli import app
from tests.qmdctl.conftest import Run

VERBS = [command.name for command in app.registered_commands if command.name]


def test_help_lists_every_verb_and_the_exit_codes(qmdctl: Run) -> None:
    done = qmdctl("--help")
    assert done.returncode == 0
    for verb in VERBS:
        assert f"\n  {verb} " in done.stdout
    assert "3 prerequisite" in done.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_help_and_json(qmdctl: Run, verb: str) -> None:
    done = qmdctl(verb, "--help")
    assert done.returncode == 0
    assert "--json" in done.stdout


def test_help_imports_nothing_heavy() -> None:
    program = "import sys; import qmdctl.cli; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "typer" in loaded
    assert not loaded & {"httpx", "docker", "requests", "pydantic", "yaml", "rich", "rich.console", "embed_service", "torch"}


@pytest.mark.parametrize("verb", ["config", "stop", "status"])
def test_no_project_is_a_configuration_error_with_a_fix(qmdctl: Run, verb: str) -> None:
    done = qmdctl(verb)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "No project here" in done.stderr
    assert "--project" in done.stderr
    answer = json.loads(qmdctl(verb, "--json").stdout)
    assert answer["exit_code"] == 2
    assert answer["fix"]


def test_config_shows_values_and_where_they_come_from(qmdctl: Run, folder: Path) -> None:
    (folder / ".env").write_text("EMBED_PORT=8011\n")
    done = qmdctl("config", "--json", cwd=folder, EMBED_MODEL="a/b")
    values = json.loads(done.stdout)["values"]
    assert values["EMBED_PORT"] == {"value": "8011", "origin": ".env", "about": "Port of the embed service."}
    assert (values["EMBED_MODEL"]["value"], values["EMBED_MODEL"]["origin"]) == ("a/b", "environment")
    assert values["VLLM_MODEL"]["origin"] == "default"
    assert "MAX_BATCH_SIZE" not in values
    assert "MAX_BATCH_SIZE" in json.loads(qmdctl("config", "--all", "--json", cwd=folder).stdout)["values"]
    assert qmdctl("config", "EMBED_PORT", cwd=folder).stdout == "8011\n"
    assert ".env" in next(line for line in qmdctl("config", cwd=folder).stdout.splitlines() if line.startswith("EMBED_PORT"))
    done = qmdctl("config", "EMBED_PROT", cwd=folder)
    assert done.returncode == 2
    assert "EMBED_PORT" in done.stderr


def test_config_does_not_print_a_secret_that_stands_in_env_by_mistake(qmdctl: Run, folder: Path) -> None:
    (folder / ".env").write_text("HF_TOKEN=hf_abc\nMY_PASSWORD=hf_abc\nHF_TOKEN_FILE=./secrets/hf_token\n")
    said = [qmdctl("config", *arguments, cwd=folder) for arguments in ([], ["--json"], ["HF_TOKEN"], ["HF_TOKEN", "--json"])]
    assert all(done.returncode == 0 and "hf_abc" not in done.stdout + done.stderr for done in said)
    values = json.loads(said[1].stdout)["values"]
    assert (values["HF_TOKEN"]["value"], values["HF_TOKEN_FILE"]["value"]) == ("…", "./secrets/hf_token")
    assert said[2].stdout == "…\n"
    assert qmdctl("config", "HF_TOKEN_FILE", cwd=folder).stdout == "./secrets/hf_token\n"


def test_the_last_project_is_used_from_anywhere_and_named(qmdctl: Run, folder: Path, tmp_path: Path) -> None:
    assert qmdctl("--project", str(folder), "config", "EMBED_PORT").stdout == "8001\n"
    done = qmdctl("config", "EMBED_PORT", cwd=tmp_path)
    assert done.stdout == "8001\n"
    assert f"Project: {folder} (the last one used)" in done.stderr


@pytest.mark.parametrize("arguments", [["start"], ["stop"], ["restart"], ["logs"], ["down"]])
def test_without_an_engine_a_prerequisite_is_missing(qmdctl: Run, folder: Path, arguments: list[str]) -> None:
    done = qmdctl("-C", str(folder), *arguments)
    assert done.returncode == 3
    assert "No Docker engine at unix://" in done.stderr
    assert "start docker" in done.stderr


def test_a_service_that_is_not_there_names_those_that_are(qmdctl: Run, folder: Path) -> None:
    done = qmdctl("-C", str(folder), "stop", "embde")
    assert done.returncode == 2
    assert "choose from embed" in done.stderr


def test_removing_volumes_asks_first(qmdctl: Run, folder: Path) -> None:
    done = qmdctl("-C", str(folder), "down", "--volumes")
    assert done.returncode == 2
    assert "--yes" in done.stderr


def test_usage_errors_are_2_and_unknown_verbs_too(qmdctl: Run) -> None:
    assert qmdctl("config", "--no-such-option").returncode == 2
    assert qmdctl("no-such-verb").returncode == 2


def test_verbose_shows_the_traceback(qmdctl: Run) -> None:
    assert "Traceback" not in qmdctl("config").stderr
    assert "Traceback" in qmdctl("--verbose", "config").stderr


def test_version_works_without_a_project_and_without_an_engine(qmdctl: Run) -> None:
    done = qmdctl("version", "--json")
    assert done.returncode == 0
    answer = json.loads(done.stdout)
    assert answer["qmdctl"] == __version__
    assert answer["docker"] is None


def test_completion_completes_verbs(qmdctl: Run) -> None:
    done = qmdctl("", _QMDCTL_COMPLETE="complete_bash", COMP_WORDS="qmdctl re", COMP_CWORD="1")
    assert "restart" in done.stdout.split()
    assert "_QMDCTL_COMPLETE" in qmdctl("--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1").stdout


def test_the_versions_of_both_packages_are_one() -> None:
    import embed_service

    assert embed_service.__version__ == __version__
