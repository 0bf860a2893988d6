"""The table of known symptoms. What the lines look like when they are provoked for real: tests/stack/test_symptoms.py."""

from __future__ import annotations

import re

import pytest

from demo.processes import ROOT
from qmdctl.symptoms import match, rules

OCI = "failed to create task for container: failed to create shim task: OCI runtime create failed: runc create failed: "
# Lines as others met them (the rules' sources name the threads): what no machine here can provoke.
LINES = [
    ("compose", "nvidia-container-cli: requirement error: unsatisfied condition: cuda>=13.0, please", "driver_too_old", "cuda>=13.0"),
    ("compose", "nvidia-container-cli: device error: 3: unknown device: unknown", "gpu_not_there", "device error: 3: unknown device"),
    ("compose", "CDI device injection failed: unresolvable CDI devices nvidia.com/gpu=3: unknown", "gpu_not_there", "nvidia.com/gpu=3"),
    ("compose", "failed to discover GPU vendor from CDI: no known GPU vendor found", "no_nvidia_runtime", "no NVIDIA runtime"),
    ("compose", "nvidia-container-cli: initialization error: nvml error: driver/library version mismatch", "driver_mismatch", "updated"),
    ("vllm", "Failed to initialize NVML: Driver/library version mismatch", "driver_mismatch", "updated"),
    (
        "compose",
        "nvidia-container-cli: initialization error: load library failed: libnvidia-ml.so.1: cannot open shared object file: no such file",
        "driver_missing",
        "not installed",
    ),
    (
        "compose",
        "nvidia-container-cli: mount error: failed to add device rules: unable to find any existing device filters attached to the cgroup: "
        "bpf_prog_query(BPF_CGROUP_DEVICE) failed: operation not permitted: unknown",
        "rootless_cgroups",
        "rootless",
    ),
    (
        "compose",
        "nvidia-container-cli: mount error: failed to add device rules: unable to create new device filters program: load program: invalid",
        "toolkit_failed",
        "load program: invalid",
    ),
    (
        "compose",
        OCI + 'error during container init: exec: "nvidia-smi": executable file not found in $PATH: unknown',
        "no_gpu_in_container",
        "got no GPU",
    ),
    (
        "compose",
        'error getting credentials - err: exec: "docker-credential-desktop.exe": executable file not found in $PATH, out: ``',
        "credential_helper",
        "passwords",
    ),
    ("compose", "Error response from daemon: manifest for a/vllm:v9 not found: manifest unknown", "image_missing", "a/vllm:v9 in"),
    (
        "compose",
        'failed to resolve reference "docker.io/library/x:1": docker.io/library/x:1: not found',
        "image_missing",
        "image docker.io/library/x:1 in",
    ),
    (
        "compose",
        "python:9: failed to resolve source metadata for docker.io/library/python:9: docker.io/library/python:9: not found",
        "image_missing",
        "image docker.io/library/python:9 in",
    ),
    ("compose", "Error response from daemon: pull access denied for x, repository does not exist", "registry_denied", "refuses"),
    ("compose", 'Error response from daemon: Head "https://ghcr.io/v2/a/b/manifests/1": denied', "registry_denied", "refuses"),
    ("compose", "denied: requested access to the resource is denied", "registry_denied", "refuses"),
    ("compose", 'failed to do request: Head "https://x/v2/": dial tcp: lookup x: no such host', "no_network", "did not reach"),
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
    (
        "vllm",
        "ValueError: To serve at least one request with the models's max seq len (131072), (4.00 GiB KV cache is needed, which is larger "
        "than the available KV cache memory (0.65 GiB). Based on the available memory, the estimated maximum model length is 21440.",
        "kv_cache_too_small",
        "0.65 GiB does not hold one text of VLLM_MAX_MODEL_LEN tokens (4.00 GiB)",
    ),
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


@pytest.mark.parametrize(
    "line",
    [
        "/bin/sh: 1: gcc: not found",
        "network qmd_egress not found",
        "Error response from daemon: No such container: qmd-embed: not found",
        "PermissionError: [Errno 13] Permission denied: '/app/x'",
        "mkdir /srv/cache: permission denied: unknown",
        "Proxy Authentication Required",
        OCI + 'exec: "python3": executable file not found in $PATH: unknown',
        "ip: unknown device eth7",
    ],
)
def test_lines_that_only_look_like_one(line: str) -> None:
    assert match("compose", [line], {}) is None


def test_an_image_that_is_not_there_may_be_either() -> None:
    found = match("compose", ["manifest for x:1 not found: manifest unknown"], {})
    assert found is not None
    assert "VLLM_IMAGE" in found.fix and "EMBED_BASE_IMAGE" in found.fix


def test_the_newest_line_of_a_containers_log_speaks() -> None:
    """A log holds earlier runs as well: the disk is no longer full."""
    log = ["OSError: [Errno 28] No space left on device", "vllm: error: unrecognized arguments: --new", "usage"]
    found, older = match("vllm", log, {}), match("vllm", log[::-1], {})
    assert found is not None and found.name == "unknown_option"
    assert older is not None and older.name == "disk_full"
    both = match("compose", ["manifest unknown", "pull access denied for x"], {})
    assert both is not None and both.name == "registry_denied", "of one run's output the order of the table decides"


@pytest.mark.parametrize(
    ("line", "name", "volume"),
    [
        ("PermissionError: [Errno 13] Permission denied: '/models/hub/models--a--b'", "cache_permission", "my_models:/c"),
        ("error: the cache /models/hub cannot be written by this user", "cache_permission", "my_models:/c"),
        ("PermissionError: [Errno 13] Permission denied: '/cache/vllm/inductor'", "compile_cache_permission", "my_caches:/c"),
    ],
)
def test_a_volume_of_another_user_has_its_own_fix(line: str, name: str, volume: str) -> None:
    facts = {"COMPOSE_PROJECT_NAME": "my", "EMBED_IMAGE": "qmd-embed:1", "QMD_UID": "1001", "QMD_GID": "1002"}
    found = match("vllm", [line], facts)
    assert found is not None and found.name == name
    assert f"chown -v {volume} qmd-embed:1 -R 1001:1002 /c" in found.fix
    unnamed = match("vllm", [line], {**facts, "COMPOSE_PROJECT_NAME": ""})
    assert unnamed is not None and "-v qmd_" in unnamed.fix


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
