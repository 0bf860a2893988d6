"""The checks before a start, cheapest first. Each is a file with `check(context)`, which yields findings or raises Unavailable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qmdctl.checks.context import Context, Unavailable
from qmdctl.checks.finding import Finding

__all__ = ["NAMES", "Context", "Finding", "exit_code", "run_checks"]

# In this order: what fails first explains what follows.
NAMES = (
    "engine",
    "compose_version",
    "env_lint",
    "secrets",
    "ports",
    "wsl",
    "gpu_host",
    "compute_capability",
    "driver",
    "toolkit",
    "architecture",
    "vllm_age",
    "disk",
    "memory",
    "models",
    "cache_volume",
    "gpu_container",
)
GPU_ONLY = frozenset({"gpu_host", "compute_capability", "driver", "toolkit", "gpu_container"})


def run_checks(context: Context, names: Sequence[str] = NAMES) -> Iterator[Finding]:
    """The findings, one by one. A check whose ground is missing is skipped, and says so."""
    from importlib import import_module

    for name in names:
        if name in GPU_ONLY and not context.gpu_mode:
            yield Finding(name, "skipped", "the stack runs without a GPU")
            continue
        try:
            yield from import_module(f"qmdctl.checks.{name}").check(context)
        except Unavailable as reason:
            yield Finding(name, "skipped", str(reason))


def exit_code(findings: Sequence[Finding]) -> int:
    """0, 2 when what failed is configuration alone, else 3."""
    failures = [finding for finding in findings if finding.level == "failure"]
    if not failures:
        return 0
    return 2 if all(finding.configuration for finding in failures) else 3
