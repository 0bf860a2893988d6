"""The GPUs that the host sees, and that EMBED_GPU and VLLM_GPU are among them."""

from __future__ import annotations

from collections.abc import Iterator

from qmdctl.checks.context import Context
from qmdctl.checks.finding import Finding
from qmdctl.hardware import GPU_MISSING
from qmdctl.terminal import human_bytes

KEYS = {"embed": "EMBED_GPU", "vllm": "VLLM_GPU"}


def check(context: Context) -> Iterator[Finding]:
    hardware = context.hardware
    if not hardware.gpus:
        driver = hardware.gpu_error.startswith(GPU_MISSING)
        fix = "install NVIDIA's driver" if driver else "restart the machine after a driver update; sudo dmesg | grep -i nvrm"
        yield Finding(
            "gpu_host", "failure", f"no GPU: {hardware.gpu_error}", "the models are to run on it", f"{fix}. Without a GPU: qmdctl up --cpu"
        )
        return
    for service in context.settings.services:
        key = KEYS.get(service)
        if key and hardware.gpu(context.settings[key]) is None:
            there = ", ".join(f"{gpu.index} ({gpu.name})" for gpu in hardware.gpus)
            yield Finding(
                "gpu_host",
                "failure",
                f"{key}={context.settings[key]} is not a GPU of this machine",
                f"there are: {there}",
                f"correct {key} in .env",
                True,
            )
    for gpu in hardware.gpus:
        memory = human_bytes(gpu.memory_bytes) if gpu.memory_bytes else f"shares the machine's {human_bytes(hardware.memory_bytes)}"
        yield Finding("gpu_host", "ok", f"GPU {gpu.index}: {gpu.name}, {memory}, driver {gpu.driver}")
