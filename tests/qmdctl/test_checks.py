"""The checks, on machines that are not here: FAKE hardware and recorded answers of programs.

Against the real engine: tests/stack/test_doctor.py.
"""

from __future__ import annotations

import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from qmdctl.checks import Context, Finding, exit_code, run_checks
from qmdctl.checks.driver import image_cuda
from qmdctl.checks.ports import free, holder
from qmdctl.checks.vllm_age import check as vllm_age
from qmdctl.errors import MissingError
from qmdctl.hardware import Gpu, Hardware
from qmdctl.process import Completed
from tests.qmdctl.projects import settings_of
from tests.support.hub import FakeHub

GIB = 1 << 30


def gpu(
    name: str = "NVIDIA GeForce RTX 4090", memory: int | None = 24 * GIB, driver: str = "580.95", capability: tuple[int, int] = (8, 9)
) -> Gpu:
    return Gpu(0, "GPU-1", name, memory, memory, driver, capability)


def machine(*gpus: Gpu, memory: int = 64 * GIB, wsl: bool = False, error: str = "") -> Hardware:
    return Hardware("Linux", "amd64", memory, memory, wsl, gpus, error)


class NoEngine(Context):
    """A context without an engine; `answers`: command's second word → what the program says."""

    def __init__(
        self, folder: Path, hardware: Hardware, values: dict[str, str] | None = None, images: dict[str, Any] | None = None
    ) -> None:
        super().__init__(settings_of(folder, values), runner=self._run, hardware=hardware)
        self.__dict__["_engine"] = MissingError("no engine", "start it")
        self.answers = {"version": Completed((), 0, "2.30.0\n", ""), "config": Completed((), 0, "", "")}
        if images is not None:
            self.__dict__["images"] = images

    def _run(self, command: list[str], **options: Any) -> Completed:
        return self.answers[next(word for word in command[2:] if not word.startswith("-"))]


def found(context: Context, name: str) -> list[Finding]:
    return list(run_checks(context, [name]))


def one(context: Context, name: str, level: str) -> Finding:
    (finding,) = [finding for finding in found(context, name) if finding.level == level]
    return finding


def test_no_engine_fails_first_and_what_needs_it_is_skipped(tmp_path: Path) -> None:
    findings = list(run_checks(NoEngine(tmp_path, machine(gpu()), {"HF_HUB_OFFLINE": "1"})))
    assert (findings[0].check, findings[0].level, findings[0].fix) == ("engine", "failure", "start it")
    assert {finding.check for finding in findings if finding.level == "skipped"} >= {
        "ports",
        "disk",
        "toolkit",
        "cache_volume",
        "gpu_container",
    }
    assert exit_code(findings) == 3


def test_without_a_gpu_in_the_plan_its_checks_are_skipped(tmp_path: Path) -> None:
    context = NoEngine(tmp_path, machine(error="nvidia-smi cannot be run"), {"COMPOSE_FILE": "compose.yaml:compose.cpu.yaml"})
    assert [found(context, name)[0].level for name in ("gpu_host", "driver", "toolkit")] == ["skipped"] * 3


@pytest.mark.parametrize(
    ("answer", "level", "words"),
    [
        (Completed((), 0, "2.24.1\n", ""), "ok", "2.24.1"),
        (Completed((), 0, "v2.30.3-desktop.1\n", ""), "ok", "2.30"),
        (Completed((), 0, "2.20.3\n", ""), "failure", "older than 2.24"),
        (Completed((), 125, "", "docker: 'compose' is not a docker command.\n"), "failure", "does not answer"),
    ],
)
def test_compose_version(tmp_path: Path, answer: Completed, level: str, words: str) -> None:
    context = NoEngine(tmp_path, machine())
    context.answers["version"] = answer
    assert words in one(context, "compose_version", level).what


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
    ],
)
def test_values_of_env(tmp_path: Path, values: dict[str, str], level: str, what: str, fix: str) -> None:
    finding = one(NoEngine(tmp_path, machine(), values), "env_lint", level)
    assert what in finding.what
    assert fix in finding.fix
    assert finding.configuration == (level == "failure")
    assert exit_code([finding]) == (2 if level == "failure" else 0)


def test_what_compose_refuses_is_told(tmp_path: Path) -> None:
    context = NoEngine(tmp_path, machine())
    context.answers["config"] = Completed((), 1, "", "services.embed Additional property x is not allowed\n")
    assert "Additional property x" in one(context, "env_lint", "failure").what


def test_key_files(tmp_path: Path) -> None:
    finding = one(NoEngine(tmp_path, machine(), {"HF_TOKEN_FILE": "./secrets/hf_token"}), "secrets", "failure")
    assert "HF_TOKEN_FILE=./secrets/hf_token is not a file" in finding.what
    key = tmp_path / "secrets/hf_token"
    key.parent.mkdir()
    key.write_text("hf_x\n")
    key.chmod(0o600)
    values = {"HF_TOKEN_FILE": "./secrets/hf_token", "QMD_UID": str(key.stat().st_uid)}
    assert [f.level for f in found(NoEngine(tmp_path, machine(), values), "secrets")] == ["ok"]
    other = one(NoEngine(tmp_path, machine(), {**values, "QMD_UID": "4242"}), "secrets", "failure")
    assert "QMD_UID=4242" in other.why
    key.chmod(0o644)
    assert "chmod 600" in one(NoEngine(tmp_path, machine(), values), "secrets", "warning").fix


def test_a_port_names_its_holder() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not free(port)
        assert holder(port).startswith("pid ")
        assert "pytest" in holder(port)
    assert free(port)
    assert holder(port) == ""


def test_gpus_of_the_host(tmp_path: Path) -> None:
    assert "RTX 4090" in one(NoEngine(tmp_path, machine(gpu())), "gpu_host", "ok").what
    missing = one(NoEngine(tmp_path, machine(error="nvidia-smi cannot be run (no such file)")), "gpu_host", "failure")
    assert "qmdctl up --cpu" in missing.fix
    wrong = one(NoEngine(tmp_path, machine(gpu()), {"VLLM_GPU": "1"}), "gpu_host", "failure")
    assert wrong.what == "VLLM_GPU=1 is not a GPU of this machine"
    assert "0 (NVIDIA GeForce RTX 4090)" in wrong.why


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


@pytest.mark.parametrize(
    ("image", "today", "level"),
    [
        ("nvcr.io/nvidia/vllm:25.12.post1-py3", datetime(2026, 11, 1, tzinfo=UTC), "ok"),
        ("nvcr.io/nvidia/vllm:25.12.post1-py3", datetime(2027, 8, 1, tzinfo=UTC), "warning"),
    ],
)
def test_age_of_the_vllm_image(tmp_path: Path, image: str, today: datetime, level: str) -> None:
    (finding,) = vllm_age(NoEngine(tmp_path, machine(), {"VLLM_IMAGE": image}), today)
    assert finding.level == level


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


def test_architecture(tmp_path: Path) -> None:
    context = NoEngine(tmp_path, machine(gpu()), images={"vllm": {"Architecture": "arm64"}})
    context.__dict__["info"] = {"Architecture": "x86_64"}
    finding = one(context, "architecture", "failure")
    assert "built for arm64" in finding.what
    assert "amd64" in finding.why


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
    unreached = found(context, "models")
    assert {finding.level for finding in unreached} == {"skipped"}
    offline = NoEngine(tmp_path, machine(), {"HF_HUB_OFFLINE": "1"})
    assert "HF_HUB_OFFLINE" in found(offline, "models")[0].what
