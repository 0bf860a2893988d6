"""The checks of the GPU and of memory, on FAKE hardware."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmdctl.checks import toolkit
from qmdctl.checks.driver import image_cuda
from qmdctl.hardware import Gpu
from tests.qmdctl.contexts import DESKTOP, GIB, FakeEngine, NoEngine, found, gpu, levels, machine, one


def test_without_a_gpu_in_the_plan_its_checks_are_skipped(tmp_path: Path) -> None:
    context = NoEngine(tmp_path, machine(error="nvidia-smi cannot be run"), {"COMPOSE_FILE": "compose.yaml:compose.cpu.yaml"})
    assert [found(context, name)[0].level for name in ("gpu_host", "driver", "toolkit")] == ["skipped"] * 3


def test_gpus_of_the_host(tmp_path: Path) -> None:
    assert "RTX 4090" in one(NoEngine(tmp_path, machine(gpu())), "gpu_host", "ok").what
    missing = one(NoEngine(tmp_path, machine(error="nvidia-smi cannot be run (no such file)")), "gpu_host", "failure")
    assert "qmdctl up --cpu" in missing.fix
    wrong = one(NoEngine(tmp_path, machine(gpu()), {"VLLM_GPU": "1"}), "gpu_host", "failure")
    assert wrong.what == "VLLM_GPU=1 is not a GPU of this machine"
    assert "0 (NVIDIA GeForce RTX 4090)" in wrong.why


def test_gpus_that_the_stack_does_not_use_are_not_looked_at(tmp_path: Path) -> None:
    old = Gpu(1, "GPU-77aa", "NVIDIA GeForce GTX 1060", 6 * GIB, 6 * GIB, "580.95", (6, 1))
    context = NoEngine(tmp_path, machine(gpu(), old))
    assert levels(context, "compute_capability") == ["ok"]
    assert levels(context, "gpu_host") == ["ok"]
    both = NoEngine(tmp_path, machine(gpu(), old), {"VLLM_GPU": "1"})
    assert levels(both, "compute_capability") == ["ok", "failure"]
    only_embed = NoEngine(tmp_path, machine(gpu(), old), {"VLLM_GPU": "1"}, services=["embed"])
    assert levels(only_embed, "compute_capability") == ["ok"]
    named = NoEngine(tmp_path, machine(gpu(), old), {"VLLM_GPU": "GPU-77"})
    assert levels(named, "compute_capability") == ["ok", "failure"], "the beginning of a UUID will do"


@pytest.mark.parametrize("name", ["MIG-5c1b0c9a-1111-5222-8333-000000000001", "0:1", "nvidia.com/gpu=0"])
def test_a_slice_of_a_card_passes(tmp_path: Path, name: str) -> None:
    context = NoEngine(tmp_path, machine(gpu()), {"EMBED_GPU": name, "VLLM_GPU": name})
    assert levels(context, "gpu_host") == ["skipped", "skipped"]
    assert levels(context, "compute_capability") == ["skipped"]
    assert levels(context, "memory") == ["skipped"]
    assert levels(context, "driver") == ["ok", "ok"]


def test_several_cards_of_one_service_pass(tmp_path: Path) -> None:
    second = Gpu(1, "GPU-2", "NVIDIA GeForce RTX 4090", 24 * GIB, 24 * GIB, "580.95", (8, 9))
    context = NoEngine(tmp_path, machine(gpu(), second), {"VLLM_GPU": "0,1"})
    assert levels(context, "gpu_host") == ["ok", "ok"]
    assert levels(context, "memory") == ["skipped"]


def test_under_wsl_the_driver_is_the_one_of_windows(tmp_path: Path) -> None:
    finding = one(NoEngine(tmp_path, machine(wsl=True, error="nvidia-smi cannot be run (x)")), "gpu_host", "failure")
    assert finding.fix.startswith("update NVIDIA's driver in Windows, then wsl --shutdown")
    old = found(NoEngine(tmp_path, machine(gpu(driver="550.120"), wsl=True)), "driver")
    assert "in Windows" in old[0].fix


def test_docker_desktop_needs_no_runtime_of_nvidia(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolkit.shutil, "which", lambda name: None)
    assert levels(FakeEngine(tmp_path, machine(gpu())), "toolkit") == ["failure"]
    assert levels(FakeEngine(tmp_path, machine(gpu()), info=DESKTOP), "toolkit") == ["warning"]


@pytest.mark.parametrize(("capability", "level"), [((6, 1), "failure"), ((7, 5), "warning"), ((8, 9), "ok"), ((12, 1), "ok")])
def test_compute_capability(tmp_path: Path, capability: tuple[int, int], level: str) -> None:
    assert one(NoEngine(tmp_path, machine(gpu(capability=capability))), "compute_capability", level)


def test_driver_against_the_images_cuda(tmp_path: Path) -> None:
    levels = [finding.level for finding in found(NoEngine(tmp_path, machine(gpu(driver="580.95"))), "driver")]
    assert levels == ["ok", "ok"]
    old = found(NoEngine(tmp_path, machine(gpu(driver="550.120"))), "driver")
    assert [finding.level for finding in old] == ["failure", "failure"]
    assert "older than CUDA 13" in old[0].what
    context = NoEngine(tmp_path, machine(gpu()), {"TORCH_BACKEND": "cu128", "VLLM_IMAGE": "my/vllm:1"})
    assert image_cuda(context, "embed") == 12
    assert image_cuda(context, "vllm") is None


def test_memory_that_does_not_fit_is_refused_with_the_number_to_change(tmp_path: Path) -> None:
    spark = machine(gpu("NVIDIA GB10", None, capability=(12, 1)), memory=31 * GIB)
    finding = one(NoEngine(tmp_path, spark, {"EMBED_MEMORY_GB": "24"}), "memory", "failure")
    assert finding.what.startswith("Planned: embed ")
    assert "available on NVIDIA GB10's shared memory (MemAvailable): 33.3 GB. Not starting" in finding.what
    assert "EMBED_MEMORY_GB" in finding.fix or "VLLM_GPU_MEMORY_UTILIZATION" in finding.fix
    assert not finding.configuration
    roomy = machine(gpu("NVIDIA GB10", None, capability=(12, 1)), memory=119 * GIB)
    assert one(NoEngine(tmp_path, roomy, {"EMBED_MEMORY_GB": "24"}), "memory", "ok")
    small = one(NoEngine(tmp_path, roomy, {"EMBED_MEMORY_GB": "4"}), "memory", "failure")
    assert "EMBED_MEMORY_GB=4 is less than" in small.what
    assert small.configuration


def test_memory_of_two_cards_is_counted_apart(tmp_path: Path) -> None:
    cards = (gpu(memory=16 * GIB), Gpu(1, "GPU-2", "NVIDIA GeForce RTX 3060", 12 * GIB, 12 * GIB, "580.95", (8, 6)))
    values = {"RERANK_MODEL": "Qwen/Qwen3-Reranker-0.6B", "VLLM_GPU": "1", "VLLM_GPU_MEMORY_UTILIZATION": "0.95", "VLLM_KV_CACHE_GB": "1"}
    findings = found(NoEngine(tmp_path, machine(*cards), values), "memory")
    assert [finding.level for finding in findings] == ["ok", "ok"]
    assert "GPU 0" in findings[0].what
    assert "GPU 1" in findings[1].what


def test_wsl(tmp_path: Path) -> None:
    assert one(NoEngine(tmp_path, machine(gpu())), "wsl", "ok")
    warned = [finding.what for finding in found(NoEngine(tmp_path, machine(gpu(), wsl=True)), "wsl")]
    assert warned == ["EMBED_MEMORY_GB is not set"]
