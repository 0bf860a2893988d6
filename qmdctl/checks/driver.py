"""The host's driver against the CUDA of the images."""

from __future__ import annotations

import re
from collections.abc import Iterator

from qmdctl.checks.context import GPU_KEYS, Context, Unavailable
from qmdctl.checks.finding import Finding

# Oldest driver branch by CUDA's major version, with minor version compatibility (NVIDIA's CUDA compatibility guide).
DRIVERS = {11: 450, 12: 525, 13: 580}
EMBED_CUDA = 13  # of torch 2.13's default wheel
# CUDA of NVIDIA's vLLM images by tag (their release notes).
TAGS = {"25.09": 13, "25.10": 13, "25.11": 13, "25.12": 13}
WSL_FIX = "update NVIDIA's driver in Windows, then wsl --shutdown; or take an older image"
FIX = "update NVIDIA's driver (Ubuntu: sudo ubuntu-drivers install; DGX Spark: its own update), or take an older image"


def check(context: Context) -> Iterator[Finding]:
    drivers = {gpu.driver for gpu in context.hardware.gpus}  # one serves all cards
    if not drivers:
        raise Unavailable("no GPU")
    for driver in drivers:
        major = int(driver.split(".")[0]) if driver.split(".")[0].isdecimal() else 0
        for service in filter(GPU_KEYS.get, context.services):
            cuda = image_cuda(context, service)
            if cuda is None or not major:
                yield Finding(
                    "driver", "skipped", f"{service}: the CUDA version of {context.image(service)} is not known before it is here"
                )
            elif major < DRIVERS.get(cuda, DRIVERS[13]):
                what = f"driver {driver} is older than CUDA {cuda} of {service}'s image needs ({DRIVERS.get(cuda, DRIVERS[13])})"
                yield Finding("driver", "failure", what, "its programs will not find the GPU", WSL_FIX if context.hardware.wsl else FIX)
            else:
                yield Finding("driver", "ok", f"{driver} serves CUDA {cuda} of {service}'s image")


def image_cuda(context: Context, service: str) -> int | None:
    """CUDA's major version in a service's image: as the image itself tells, else as its tag or its build lets know."""
    if not context.engine_error and service in context.images:
        environment = context.images[service].get("Config", {}).get("Env") or []
        told = next((line.partition("=")[2] for line in environment if line.startswith("CUDA_VERSION=")), "")
        if told.split(".")[0].isdecimal():
            return int(told.split(".")[0])
    if service == "embed":
        backend = re.fullmatch(r"cu(\d\d)\d", context.settings["TORCH_BACKEND"])
        return int(backend[1]) if backend else EMBED_CUDA if not context.settings["TORCH_BACKEND"] else None
    tag = re.search(r"nvcr\.io/nvidia/vllm:(\d\d\.\d\d)", context.image(service))
    if tag is None:
        return None
    return TAGS.get(tag[1], 13 if tag[1] > "25.12" else None)
