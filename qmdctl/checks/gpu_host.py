"""The GPUs that the host sees, and that EMBED_GPU and VLLM_GPU are among them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from qmdctl.checks.context import GPU_KEYS, Context
from qmdctl.checks.finding import Finding
from qmdctl.hardware import GPU_MISSING
from qmdctl.terminal import human_bytes

# A slice of a card (MIG-…, or 0:1 for the second of card 0), all, or a device by its CDI name: NVIDIA's toolkit takes them.
UNCHECKED = re.compile(r"MIG-.+|\d+:\d+|all|.+=.+")
# A driver of Linux inside WSL hides the one that Windows lends it.
WSL_FIX = "update NVIDIA's driver in Windows, then wsl --shutdown; install none inside WSL"


def check(context: Context) -> Iterator[Finding]:
    hardware = context.hardware
    if not hardware.gpus:
        driver = hardware.gpu_error.startswith(GPU_MISSING)
        fix = "install NVIDIA's driver" if driver else "restart the machine after a driver update; sudo dmesg | grep -i nvrm"
        fix = f"{WSL_FIX if hardware.wsl else fix}. Without a GPU: qmdctl up --cpu"
        yield Finding("gpu_host", "failure", f"no GPU: {hardware.gpu_error}", "the models are to run on it", fix)
        return
    for service in context.services:
        for name in context.gpu_names(service):
            key, value = GPU_KEYS[service], context.settings[GPU_KEYS[service]]
            if context.find_gpu(name):
                continue
            if UNCHECKED.fullmatch(name):
                yield Finding("gpu_host", "skipped", f"{key}={value} is no whole card, and nvidia-smi does not list it")
                continue
            there = ", ".join(f"{gpu.index} ({gpu.name})" for gpu in hardware.gpus)
            what = f"{key}={value} is not a GPU of this machine"
            yield Finding("gpu_host", "failure", what, f"there are: {there}", f"correct {key} in .env", True)
    for gpu in context.gpus:
        memory = human_bytes(gpu.memory_bytes) if gpu.memory_bytes else f"shares the machine's {human_bytes(hardware.memory_bytes)}"
        yield Finding("gpu_host", "ok", f"GPU {gpu.index}: {gpu.name}, {memory}, driver {gpu.driver}")
