"""The table of known symptoms. What the lines look like when they are provoked for real: tests/stack/test_symptoms.py."""

from __future__ import annotations

import re

import pytest

from demo.processes import ROOT
from qmdctl.symptoms import match, rules

# Lines as others met them (the rules' sources name the threads): what no machine here can provoke.
LINES = [
    ("compose", "nvidia-container-cli: requirement error: unsatisfied condition: cuda>=13.0, please", "driver_too_old", "cuda>=13.0"),
    ("compose", "nvidia-container-cli: device error: 3: unknown device: unknown", "gpu_not_there", "EMBED_GPU"),
    ("compose", "error: invoking the NVIDIA Container Runtime Hook directly (e.g. …) is not supported.", "cdi_hook", "CDI"),
    ("vllm", "exec /usr/bin/python3: exec format error", "wrong_architecture", "another processor"),
    ("compose", "no matching manifest for linux/arm64/v8 in the manifest list entries", "wrong_architecture", "linux/arm64/v8"),
    ("compose", "toomanyrequests: You have reached your pull rate limit.", "rate_limit", "too many"),
    (
        "vllm",
        "ValueError: Free memory on device (74.9/121.7 GiB) on startup is less than desired GPU memory utilization (0.9, 109.53 GiB).",
        "free_memory",
        "0.9 of 121.7 GiB and finds 74.9",
    ),
    ("vllm", "ValueError: No available memory for the cache blocks. Try increasing", "no_cache_blocks", "KV cache"),
    ("embed", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", "out_of_memory", "embed"),
    ("vllm", "RuntimeError: Failed to infer device type", "gpu_lost", "does not see the GPU"),
    ("embed", "Failed to initialize NVML: Unknown Error", "gpu_lost", "does not see the GPU"),
    ("vllm", "CUDA error: no kernel image is available for execution on the device", "no_kernel", "another GPU generation"),
    ("vllm", "ptxas fatal   : Value 'sm_121a' is not defined for option 'gpu-name'", "no_kernel", "another GPU generation"),
]  # fmt: skip


@pytest.mark.parametrize(("service", "line", "name", "words"), LINES)
def test_lines_met_elsewhere(service: str, line: str, name: str, words: str) -> None:
    found = match(service, ["INFO all is well", line, "a later line"], {"service": service})
    assert found is not None
    assert found.name == name
    assert words in found.cause
    assert found.fix


def test_the_harmless_warning_of_a_spark_is_no_symptom() -> None:
    line = "Found GPU0 NVIDIA GB10 which is of cuda capability 12.1. Minimum and Maximum cuda capability supported is (8.0) - (12.0)"
    assert match("embed", [line], {}) is None
    assert match("vllm", ["INFO: Application startup complete.", "GET /health 200"], {}) is None


def test_a_rule_for_one_service_does_not_speak_of_another() -> None:
    line = "vllm: error: unrecognized arguments: --new-option"
    assert match("embed", [line], {}) is None
    found = match("vllm", [line], {})
    assert found is not None
    assert "--new-option" in found.cause


def test_a_slow_start_is_said_only_of_an_unhealthy_container() -> None:
    lines = ["Loading safetensors checkpoint shards: 50% Completed"]
    assert match("vllm", lines, {}) is None
    found = match("vllm", lines, {"state": "unhealthy"})
    assert found is not None
    assert found.name == "slow_start"


def test_settings_in_force_fill_the_sentences() -> None:
    found = match("compose", ["Error response from daemon: pull access denied for x"], {"VLLM_IMAGE": "my/image:1"})
    assert found is not None
    assert "my/image:1" in found.fix
    for rule in rules():
        match(rule.name, ["x"], {})  # every sentence can be formatted with nothing known
        rule.cause.format_map({name: "" for name in re.findall(r"\{(\w+)\}", rule.cause)})


def test_every_symptom_names_its_source_and_a_provoked_one_its_test() -> None:
    for rule in rules():
        assert rule.cause.rstrip().endswith((".", "}")), rule.name
        assert rule.fix
        file = re.search(r"tests/\S+\.py", rule.source)
        if "provoked in" in rule.source:
            assert file is not None, rule.name
            assert rule.name in (ROOT / file[0]).read_text(), f"{file[0]} does not name {rule.name}"
