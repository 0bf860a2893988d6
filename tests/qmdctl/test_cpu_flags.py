"""`--cpu` over an .env that `init` wrote for a GPU: small models and their memory figures, as far as Compose; what was chosen stays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qmdctl.commands.common import mode_flags
from qmdctl.compose import Compose
from qmdctl.errors import ConfigurationError
from qmdctl.presets import load_presets
from qmdctl.project import Project
from qmdctl.proposal import MODEL_KEYS, cpu_flags
from qmdctl.settings import Settings, load_settings
from qmdctl.terminal import Terminal
from tests.qmdctl.projects import settings_of
from tests.qmdctl.test_env_file import need_compose

CPU, SPARK = (load_presets()[name].settings for name in ("cpu", "spark"))
MINE = "sentence-transformers/all-MiniLM-L6-v2"


def with_flags(folder: Path, env: dict[str, str]) -> Settings:
    settings_of(folder, env)
    project = Project(folder, "test")
    return load_settings(project, mode_flags(True, False, project))


@pytest.mark.parametrize("name", [name for name in load_presets() if name != "cpu"])
def test_what_init_wrote_for_a_gpu_becomes_the_cpu_preset(tmp_path: Path, name: str) -> None:
    settings = with_flags(tmp_path, {"COMPOSE_FILE": "compose.yaml", **load_presets()[name].settings})
    assert settings.cpu
    assert {key: settings[key] for key in CPU} == CPU
    assert settings["EMBED_MEMORY_GB"] == ""


def test_compose_gives_it_to_the_containers_without_the_revision_of_another_model(tmp_path: Path) -> None:
    need_compose()
    pinned = {"EMBED_REVISION": "a" * 40, "RERANK_MODEL": MINE, "RERANK_REVISION": "b" * 40, "VLLM_REVISION": "c" * 40}
    settings = with_flags(tmp_path, {**SPARK, **pinned})
    done = Compose(settings, Terminal()).run("config", "--format", "json", capture=True, echo=False)
    services = json.loads(done.stdout)["services"]
    embed, vllm = services["embed"]["environment"], services["vllm"]["environment"]
    assert (embed["EMBED_MODEL"], embed["EMBED_REVISION"]) == (CPU["EMBED_MODEL"], "")
    assert (embed["RERANK_MODEL"], embed["RERANK_REVISION"]) == (MINE, "b" * 40)
    assert (vllm["QMD_MODEL"], vllm["QMD_REVISION"]) == (CPU["VLLM_MODEL"], "")
    assert (vllm["QMD_KV_CACHE_GB"], vllm["QMD_MAX_MODEL_LEN"]) == (CPU["VLLM_KV_CACHE_GB"], CPU["VLLM_MAX_MODEL_LEN"])
    assert embed["EMBED_MEMORY_GB"] == ""


def test_the_defaults_of_a_gpu_are_replaced_as_well(tmp_path: Path) -> None:
    """As without an .env, or with one in which the models are commented out."""
    settings = with_flags(tmp_path, {"EMBED_REVISION": "a" * 40})
    assert {key: settings[key] for key in MODEL_KEYS} == {key: CPU[key] for key in MODEL_KEYS}
    assert settings["EMBED_REVISION"] == ""


@pytest.mark.parametrize("model", [MINE, "an/unknown-one", "/models/own"])
def test_a_small_model_and_one_that_nobody_knows_stay_with_their_revision(tmp_path: Path, model: str) -> None:
    settings = with_flags(tmp_path, {**SPARK, "EMBED_MODEL": model, "EMBED_REVISION": "a" * 40})
    assert (settings["EMBED_MODEL"], settings["EMBED_REVISION"]) == (model, "a" * 40)
    assert settings["RERANK_MODEL"] == CPU["RERANK_MODEL"]


def test_what_this_commands_environment_sets_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBED_MODEL", SPARK["EMBED_MODEL"])
    settings = with_flags(tmp_path, {**SPARK, "EMBED_REVISION": "a" * 40})
    assert (settings["EMBED_MODEL"], settings["EMBED_REVISION"]) == (SPARK["EMBED_MODEL"], "a" * 40)
    assert settings["VLLM_MODEL"] == CPU["VLLM_MODEL"]


def test_an_env_for_a_cpu_is_taken_as_it_is(tmp_path: Path) -> None:
    files = "compose.yaml:compose.cpu.yaml"
    assert cpu_flags(settings_of(tmp_path, {"COMPOSE_FILE": files, **CPU, "EMBED_MODEL": SPARK["EMBED_MODEL"]})) is None


def test_gpu_sets_the_files_alone_and_excludes_cpu(tmp_path: Path) -> None:
    project = Project(tmp_path, "test")
    assert mode_flags(False, True, project) == {"COMPOSE_FILE": "compose.yaml"}
    assert mode_flags(False, False, project) is None
    with pytest.raises(ConfigurationError, match="exclude each other"):
        mode_flags(True, True, project)
