"""The checks of .env and of the models that it names."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmdctl.checks import exit_code
from qmdctl.process import Completed
from tests.qmdctl.containers import container
from tests.qmdctl.contexts import FakeEngine, NoEngine, found, gpu, levels, machine, one
from tests.support.hub import FakeHub


@pytest.mark.parametrize(
    ("values", "level", "what", "fix"),
    [
        ({"EMBED_PORT": "80x"}, "failure", "EMBED_PORT='80x' is not a port", "1 to 65535"),
        ({"EMBED_PORT": "8000", "VLLM_PORT": "8000"}, "failure", "both 8000", "another number"),
        ({"VLLM_GPU_MEMORY_UTILIZATION": "20"}, "failure", "VLLM_GPU_MEMORY_UTILIZATION=20", "at most 1"),
        ({"DEVICE": "gpu"}, "failure", "DEVICE=gpu", "cuda, auto, cpu or mps"),
        ({"MAX_BATCH_SIZE": "many"}, "failure", "MAX_BATCH_SIZE=many", "whole number"),
        ({"HF_TOKEN": "hf_x"}, "warning", "HF_TOKEN in .env reaches no container", "HF_TOKEN_FILE"),
        ({"SOMETHING": "1"}, "warning", "SOMETHING in .env is taken by nothing", "remove it"),
        ({"HF_HUB_ENABLE_HF_TRANSFER": "1"}, "warning", "HF_HUB_ENABLE_HF_TRANSFER in .env reaches no container", "override"),
        ({"VLLM_USE_V1": "1"}, "warning", "VLLM_USE_V1 in .env reaches no container", "VLLM_EXTRA_ARGS"),
        ({"TS_AUTHKEY": "x"}, "warning", "TS_AUTHKEY in .env reaches no container", "override"),
        ({"http_proxy": "http://p:3128"}, "warning", "http_proxy in .env reaches no container", "HTTPS_PROXY"),
        ({"DTYPE": "fp16"}, "failure", "DTYPE=fp16", "auto, bfloat16, float32"),
        ({"VLLM_DTYPE": "fp8"}, "failure", "VLLM_DTYPE=fp8", "float16"),
        ({"EMBED_MEMORY_GB": "auto"}, "failure", "EMBED_MEMORY_GB=auto", "number of GB"),
        ({"EMBED_MEMORY_GB": "inf"}, "failure", "EMBED_MEMORY_GB=inf", "number of GB"),
        ({"EMBED_MEMORY_GB": "nan"}, "failure", "EMBED_MEMORY_GB=nan", "number of GB"),
        ({"VLLM_KV_CACHE_GB": "inf"}, "failure", "VLLM_KV_CACHE_GB=inf", "or auto"),
    ],
)
def test_values_of_env(tmp_path: Path, values: dict[str, str], level: str, what: str, fix: str) -> None:
    finding = one(NoEngine(tmp_path, machine(), values), "env_lint", level)
    assert what in finding.what
    assert fix in finding.fix
    assert finding.configuration == (level == "failure")
    assert exit_code([finding]) == (2 if level == "failure" else 0)


@pytest.mark.parametrize(
    "values",
    [
        {"VLLM_DTYPE": "half", "DTYPE": "float32", "VLLM_KV_CACHE_GB": "auto", "EMBED_MEMORY_GB": "7.5"},
        {"COMPOSE_PROFILES": "", "VLLM_DTYPE": "fp8", "VLLM_GPU_MEMORY_UTILIZATION": "20", "VLLM_PORT": "8001"},
        {"HTTPS_PROXY": "http://p:3128", "NO_PROXY": "localhost"},
    ],
    ids=["usable", "of a service that does not run", "proxies"],
)
def test_values_of_env_that_pass(tmp_path: Path, values: dict[str, str]) -> None:
    assert levels(NoEngine(tmp_path, machine(), values), "env_lint") == ["ok"]


@pytest.mark.parametrize("value", ["inf", "nan", "1e400"])
def test_a_size_that_is_none_ends_no_other_check(tmp_path: Path, value: str) -> None:
    for values in ({"EMBED_MEMORY_GB": value}, {"DTYPE": "fp16"}):
        assert levels(NoEngine(tmp_path, machine(gpu()), values), "memory")


def test_a_variable_that_an_override_passes_on_is_taken(tmp_path: Path) -> None:
    override = "services: {vllm: {environment: [VLLM_USE_V1]}, embed: {environment: {HF_DEBUG: }}}\n"
    (tmp_path / "compose.override.yaml").write_text(override)
    values = {"COMPOSE_FILE": "compose.yaml:compose.override.yaml", "VLLM_USE_V1": "1", "HF_DEBUG": "1"}
    assert levels(NoEngine(tmp_path, machine(), values), "env_lint") == ["ok"]


def test_what_compose_refuses_is_told(tmp_path: Path) -> None:
    context = NoEngine(tmp_path, machine())
    context.answers["config"] = Completed((), 1, "", "services.embed Additional property x is not allowed\n")
    assert "Additional property x" in one(context, "env_lint", "failure").what


def test_models_at_the_hub(tmp_path: Path, minilm: str) -> None:
    """The FAKE hub speaks the hub's own API."""
    with FakeHub() as hub:
        hub.add("org/open", Path(minilm))
        hub.add("org/gated", Path(minilm), gated=True)
        values = {"HF_ENDPOINT": hub.url, "EMBED_MODEL": "org/open", "RERANK_MODEL": "org/gated", "VLLM_MODEL": "org/absent"}
        context = NoEngine(tmp_path, machine(), values)
        findings = {finding.what.split("=")[0]: finding for finding in found(context, "models")}
        assert findings["EMBED_MODEL"].level == "ok"
        assert findings["RERANK_MODEL"].level == "failure"
        assert "HF_TOKEN_FILE" in findings["RERANK_MODEL"].fix
        assert "org/absent" in findings["VLLM_MODEL"].what
        assert exit_code(list(findings.values())) == 2
        known = FakeEngine(tmp_path, machine(), values, volumes=["qmd_models"])
        assert {finding.level for finding in found(known, "models")} == {"ok", "warning"}, "the weights may be here already"
        revision = {**values, "EMBED_REVISION": "v9", "RERANK_MODEL": "org/open", "COMPOSE_PROFILES": ""}
        other = one(NoEngine(tmp_path, machine(), revision), "models", "failure")
        assert "EMBED_MODEL=org/open has no revision v9" in other.what
        assert "EMBED_REVISION" in other.fix
        hub.add("org/open", Path(minilm), branch="v9")
        assert levels(NoEngine(tmp_path, machine(), revision), "models") == ["ok", "ok"]
        hub.tokens["other"] = set()
        expired = {**revision, "HF_TOKEN_FILE": "./token"}
        (tmp_path / "token").write_text("hf_expired")
        assert levels(NoEngine(tmp_path, machine(), expired), "models") == ["failure", "failure"]
        assert levels(FakeEngine(tmp_path, machine(), expired, containers={"embed": container()}), "models") == ["warning", "warning"]
    unreached = found(context, "models")
    assert {finding.level for finding in unreached} == {"skipped"}
    offline = NoEngine(tmp_path, machine(), {"HF_HUB_OFFLINE": "1"})
    assert "HF_HUB_OFFLINE" in found(offline, "models")[0].what
