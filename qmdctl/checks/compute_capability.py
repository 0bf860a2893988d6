"""Whether the images have kernels for the GPU."""

from __future__ import annotations

from collections.abc import Iterator

from qmdctl.checks.context import Context, Unavailable
from qmdctl.checks.finding import Finding

OLDEST = (7, 5)  # of torch 2.13's wheels with CUDA 13: sm_75 to sm_120
OLDEST_BF16 = (8, 0)


def check(context: Context) -> Iterator[Finding]:
    if not context.gpus:
        raise Unavailable("no GPU of this stack is known")
    for gpu in context.gpus:
        capability = gpu.compute_capability
        name = f"{gpu.name}: compute capability {capability[0]}.{capability[1]}" if capability else ""
        if capability is None:
            yield Finding("compute_capability", "skipped", f"{gpu.name}: nvidia-smi does not tell it")
        elif capability < OLDEST:
            why = f"the images have kernels from {OLDEST[0]}.{OLDEST[1]} on"
            yield Finding("compute_capability", "failure", name, why, "use a newer card, or qmdctl up --cpu")
        elif capability < OLDEST_BF16:
            yield Finding(
                "compute_capability",
                "warning",
                name,
                "bfloat16 is emulated there",
                "DTYPE=float32 and VLLM_DTYPE=float16 in .env are faster",
            )
        else:
            yield Finding("compute_capability", "ok", name)
