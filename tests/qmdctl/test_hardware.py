"""What the machine is, from recorded outputs (FAKE: no GPU here), and from this machine's own /proc."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmdctl import hardware
from qmdctl.errors import MissingError
from qmdctl.hardware import GPU_MISSING, find_gpus, find_hardware, read_meminfo
from qmdctl.process import Completed, run
from tests.qmdctl.machines import GIB, SPARK, card, machine, proc_folder, smi


def test_a_spark_has_one_memory_although_nvidia_smi_tells_no_size(tmp_path: Path) -> None:
    found = machine(tmp_path, SPARK, total_gib=121.7, available_gib=112)
    (gpu,) = found.gpus
    assert found.unified and gpu.unified
    assert (gpu.memory_bytes, gpu.driver, gpu.compute_capability) == (None, "580.142", (12, 1))
    assert found.available_bytes == 112 * GIB


def test_not_supported_is_read_as_no_size() -> None:
    gpus, error = find_gpus(smi(SPARK.replace("[N/A]", "[Not Supported]")))
    assert error == "" and gpus[0].memory_bytes is None and gpus[0].unified


def test_cards_have_a_memory_of_their_own(tmp_path: Path) -> None:
    found = machine(tmp_path, card("NVIDIA GeForce RTX 4090", 24564), card("NVIDIA GeForce RTX 3060", 12288, index=1, capability="8.6"))
    assert not found.unified
    assert [gpu.memory_bytes for gpu in found.gpus] == [24564 << 20, 12288 << 20]
    assert found.gpu("1") is found.gpus[1]
    assert found.gpu(found.gpus[1].uuid) is found.gpus[1]
    assert found.gpu("7") is None


def test_why_there_is_no_gpu_is_what_nvidia_smi_said(tmp_path: Path) -> None:
    found = machine(tmp_path)
    assert found.gpus == ()
    assert "couldn't communicate with the NVIDIA driver" in found.gpu_error


def test_no_nvidia_smi_at_all() -> None:
    gpus, error = find_gpus(lambda command: run(["/nonexistent/nvidia-smi", *command[1:]]))
    assert gpus == () and error.startswith(GPU_MISSING)


def test_under_wsl_nvidia_smi_need_not_be_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAKE: Windows' nvidia-smi."""

    def runner(command: list[str]) -> Completed:
        if command[0] == "nvidia-smi":
            raise MissingError("nvidia-smi cannot be run: No such file or directory")
        assert command[0] == str(tmp_path / "nvidia-smi")
        return smi(card("NVIDIA GeForce RTX 4090", 24564))(command)

    monkeypatch.setattr(hardware, "WSL_NVIDIA_SMI", str(tmp_path / "nvidia-smi"))
    assert find_gpus(runner)[1].startswith(GPU_MISSING)
    (tmp_path / "nvidia-smi").touch()
    assert find_gpus(runner)[0][0].name == "NVIDIA GeForce RTX 4090"


def test_wsl_is_told_by_the_kernel(tmp_path: Path) -> None:
    assert machine(tmp_path, version="Linux version 5.15.153.1-microsoft-standard-WSL2").wsl
    assert not machine(tmp_path / "other").wsl


def test_this_machine(tmp_path: Path) -> None:
    found = find_hardware()
    memory = read_meminfo(Path("/proc/meminfo"))
    assert found.memory_bytes == memory.get("MemTotal", found.memory_bytes) > 0
    assert found.architecture in ("amd64", "arm64")


def test_a_damaged_meminfo_is_zero_not_an_error(tmp_path: Path) -> None:
    proc = proc_folder(tmp_path / "proc", 1, 1)
    (proc / "meminfo").write_text("nonsense")
    assert find_hardware(proc, smi(SPARK)).available_bytes == 0
