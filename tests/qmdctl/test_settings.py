"""Which project a command is for, and what is in force in it; Compose itself is the measure of the values."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from demo.processes import ROOT
from qmdctl.compose_files import interpolate, references
from qmdctl.errors import ConfigurationError
from qmdctl.project import Project, find_project
from qmdctl.settings import Settings, load_settings
from qmdctl.state import State
from tests.qmdctl.test_env_file import need_compose


def load(folder: Path, env: str | None = "", environment: dict[str, str] | None = None, **flags: str) -> Settings:
    if env is not None:
        (folder / ".env").write_text(env)
    return load_settings(Project(folder, "test"), flags, environment or {})


def test_precedence_default_env_file_environment_flag(folder: Path) -> None:
    settings = load(folder)
    assert (settings["EMBED_PORT"], settings.origin("EMBED_PORT")) == ("8001", "default")
    settings = load(folder, "EMBED_PORT=1\n")
    assert (settings["EMBED_PORT"], settings.origin("EMBED_PORT")) == ("1", ".env")
    settings = load(folder, None, {"EMBED_PORT": "2"})
    assert (settings["EMBED_PORT"], settings.origin("EMBED_PORT")) == ("2", "environment")
    settings = load(folder, None, {"EMBED_PORT": "2"}, EMBED_PORT="3")
    assert (settings["EMBED_PORT"], settings.origin("EMBED_PORT")) == ("3", "flag")
    settings = load(folder, None, {"EMBED_PORT": ""})
    assert (settings["EMBED_PORT"], settings.origin("EMBED_PORT")) == ("8001", "default"), "as in Compose, empty leaves the default"


def test_services_follow_the_profiles_and_defaults_follow_the_files(folder: Path) -> None:
    settings = load(folder, "COMPOSE_PROFILES=generation\n")
    assert settings.services == ["embed", "vllm"]
    assert not settings.cpu
    settings = load(folder, "COMPOSE_FILE=compose.yaml:compose.cpu.yaml\n")
    assert settings.services == ["embed"]
    assert settings["EMBED_MODEL"] == "Qwen/Qwen3-Embedding-0.6B"
    assert settings.cpu
    assert settings.name == "qmd"


def test_the_comments_of_the_example_describe_the_keys(folder: Path) -> None:
    keys = load(folder).keys_known
    assert keys["EMBED_MODEL"].about == "Embedding model: a Hugging Face id."
    assert keys["EMBED_PORT"].about == "Port of the embed service."


@pytest.mark.parametrize(
    ("text", "found", "value"),
    [
        ("${A}", [("A", "")], "a"),
        ("x${A:-1}y${N-2}", [("A", "1"), ("N", "2")], "xay2"),
        ("${N:-${M:-deep}}", [("N", "${M:-deep}"), ("M", "deep")], "deep"),
        ("${N:-${A:+there}}", [("N", "${A:+there}"), ("A", "")], "there"),
        ("$$ ${N:+no}", [("N", "")], "$ "),
        ("plain", [], "plain"),
    ],
)
def test_references_and_their_values(text: str, found: list[tuple[str, str]], value: str) -> None:
    assert references(text) == found
    assert interpolate(text, lambda name: {"A": "a"}.get(name, "")) == value


@pytest.mark.parametrize("files", ["compose.yaml", "compose.yaml:compose.cpu.yaml"])
@pytest.mark.parametrize("profiles", ["generation", ""])
def test_what_qmdctl_says_is_in_force_is_what_compose_gives_the_containers(files: str, profiles: str) -> None:
    """The project's own compose files: every variable of embed's environment that is named like its key."""
    need_compose()
    given = {"COMPOSE_FILE": files, "COMPOSE_PROFILES": profiles, "EMBED_MODEL": "my/model", "MAX_BATCH_SIZE": "8", "HF_TOKEN_FILE": ""}
    settings = load_settings(Project(ROOT, "test"), {}, given, need_env=False)
    environment = {**{k: v for k, v in os.environ.items() if k not in settings and not k.startswith("COMPOSE_")}, **given}
    command = ["docker", "compose", "--env-file", os.devnull, "config", "--format", "json"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    services = json.loads(done.stdout)["services"]
    assert list(services) == settings.services
    compared = 0
    for name, value in services["embed"]["environment"].items():
        if name in settings and not name.endswith("_FILE"):  # paths inside the container
            assert settings[name] == value, name
            compared += 1
    assert compared > 30
    assert services["embed"]["ports"][0]["published"] == settings["EMBED_PORT"]


@pytest.mark.parametrize(
    ("env", "message", "fix"),
    [
        ("EMBED_MODLE=x\n", "line 1: EMBED_MODLE is not known", "EMBED_MODEL"),
        ("\nVLLM_MODLE=x\n", "line 2: VLLM_MODLE", "VLLM_MODEL"),
        ("embed_model=x\n", "embed_model is not known", "EMBED_MODEL"),
        ("COMPOSE_FILE=other.yaml\n", "COMPOSE_FILE names other.yaml", "correct COMPOSE_FILE"),
    ],
)
def test_a_misspelt_key_names_the_nearest(folder: Path, env: str, message: str, fix: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(folder, env)
    assert message in caught.value.message
    assert fix in caught.value.fix


def test_other_keys_pass(folder: Path) -> None:
    settings = load(folder, "HF_HUB_ENABLE_HF_TRANSFER=1\nVLLM_USE_V1=1\nTS_EXTRA_ARGS=x\nHTTPS_PROXY=http://p\nMY_OWN=1\n")
    assert settings["MY_OWN"] == "1"


@pytest.mark.parametrize("name", ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "FTP_PROXY", "NO_PROXY"])
def test_a_proxy_is_no_misspelling(folder: Path, name: str) -> None:
    (folder / "compose.yaml").write_text("services: {embed: {environment: {HTTPS_PROXY: '${HTTPS_PROXY:-}', NO_PROXY: '${NO_PROXY:-}'}}}\n")
    for spelling in (name, name.lower()):
        assert load(folder, f"{spelling}=http://p:3128\n")[spelling] == "http://p:3128"
    with pytest.raises(ConfigurationError, match="HTTPS_PROXI is not known"):
        load(folder, "HTTPS_PROXI=http://p:3128\n")


def test_bad_yaml_is_named_with_its_line(folder: Path) -> None:
    (folder / "compose.yaml").write_text("services:\n  embed: [\n")
    with pytest.raises(ConfigurationError, match=r"compose\.yaml, line 3") as caught:
        load(folder)
    assert "git checkout compose.yaml" in caught.value.fix
    (folder / "compose.yaml").write_text("- a list\n")
    with pytest.raises(ConfigurationError, match="not a compose file"):
        load(folder)


def test_a_port_that_is_none_names_its_key(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"EMBED_PORT='80x'.*\.env"):
        load(folder, "EMBED_PORT=80x\n").port("EMBED_PORT")


def test_the_project_is_found_from_below_by_name_and_as_the_last_one(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    below = folder / "docs/deep"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert find_project(None, None, {}) == Project(folder, "the current folder")
    monkeypatch.chdir(tmp_path)
    assert find_project("project", None, {}).folder == folder
    assert find_project(None, None, {"QMD_HOME": str(folder)}).found_by == "QMD_HOME"
    state = State(tmp_path / "state.json")
    with pytest.raises(ConfigurationError, match="No project here"):
        find_project(None, state, {})
    state.remember_project(folder)
    assert find_project(None, State(tmp_path / "state.json"), {}) == Project(folder, "the last one used")
    with pytest.raises(ConfigurationError, match=r"--project: .* has no compose\.yaml"):
        find_project(str(tmp_path), None, {})
    (tmp_path / "compose.yaml").write_text("services: {}\n")
    with pytest.raises(ConfigurationError, match="No project here"):
        find_project(None, None, {})  # somebody else's compose.yaml


def test_a_damaged_state_file_costs_the_memory_alone(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text("{broken")
    state = State(path)
    assert state.last_project is None
    state.remember_start("here", {"vllm": {"loading": 3.0}})
    State(path).remember_start("here", {"embed": {"loading": 1.0}})
    assert State(path).last_start("here") == {"vllm": {"loading": 3.0}, "embed": {"loading": 1.0}}
    State(Path("/proc/no/such/state.json")).remember_project(tmp_path)  # not an error
